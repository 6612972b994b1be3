//! A report as a person sees it, in a browser.

use dacapo_integration::chromium::{Chromium, size_of, url};
use dacapo_integration::environment;

use super::stage::{Drilled, EVENTS, Stage};

/// Room for the page up to its evidence.
const SIZE: (u32, u32) = (960, 1355);

/// Checks that the page shows the drill, as a picture and on paper. `DACAPO_WRITE_GENERATED=1` keeps the
/// picture for the documents.
#[track_caller]
pub(super) fn check_shown(stage: &Stage, drilled: &Drilled) {
    let folder = stage.platform.dacapo.folder();
    let page = drilled.folder.join("report.html");
    let chromium = Chromium::new(folder);
    let document = chromium.document(&page).unwrap();
    for words in
        ["targets met</div>", "orders after a lost database", "order.moved", "<svg", drilled.id()]
    {
        assert!(document.contains(words), "no “{words}” in {document}");
    }
    assert!(document.contains(&format!("{EVENTS} of {EVENTS}, 0 rejected")), "{document}");
    assert!(!document.contains("<script"), "{document}");

    let picture = chromium.picture(&url(&page), SIZE, &folder.join("report.png")).unwrap();
    assert_eq!(size_of(&picture).unwrap(), SIZE);
    let blank = chromium.picture("about:blank", SIZE, &folder.join("blank.png")).unwrap();
    assert!(picture.len() > 5 * blank.len(), "{} bytes, blank {}", picture.len(), blank.len());
    let paper = chromium.print(&page, &folder.join("report.pdf")).unwrap();
    assert!(paper.starts_with(b"%PDF-") && paper.len() > 10_000, "{} bytes", paper.len());
    if keeps() {
        std::fs::write(environment::root().join("docs/drill-report.png"), &picture).unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "a developer's switch of this test")]
fn keeps() -> bool {
    std::env::var_os("DACAPO_WRITE_GENERATED").is_some()
}
