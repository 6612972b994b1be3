//! The bugs that `integration/campaign --self-test` plants still fit the code that they break.

use std::fs;

#[test]
fn every_planted_bug_has_its_place_in_the_code() {
    let folder = super::root().join("integration/campaign.d");
    let mut patches = 0;
    for entry in fs::read_dir(folder).expect("the folder of planted bugs") {
        let path = entry.expect("an entry of the folder").path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let name = path.file_name().expect("it has a name").display().to_string();
            check_fits(&name, &fs::read_to_string(&path).expect("a patch is text"));
            patches += 1;
        }
    }
    assert!(patches > 0, "there are no planted bugs");
}

#[track_caller]
fn check_fits(name: &str, patch: &str) {
    let mut files = patch.split("\n+++ b/").skip(1).peekable();
    assert!(files.peek().is_some(), "{name} changes no file");
    for file in files {
        let (path, hunks) = file.split_once('\n').expect("a hunk follows the path");
        let code = super::read(path);
        for hunk in hunks.split("\n@@ ").map(old_lines) {
            assert!(
                code.contains(&hunk),
                "{name} no longer fits {path}; make it again for the code as it is now:\n{hunk}"
            );
        }
    }
}

/// Returns the lines that a hunk expects to find, its context included.
fn old_lines(hunk: &str) -> String {
    let lines = hunk.lines().skip(1).take_while(|line| !line.starts_with("diff "));
    let old = lines.filter(|line| line.starts_with([' ', '-'])).map(|line| &line[1..]);
    old.collect::<Vec<_>>().join("\n")
}
