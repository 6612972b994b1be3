//! A page as a browser shows it: Debian's Chromium without a window, a profile of its own, no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Without a sandbox, because tests run as root; nothing but the page is loaded.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--no-pdf-header-footer",
];

/// Opens pages in the program, which leaves its profile in a folder of the caller's.
#[derive(Debug)]
pub struct Chromium {
    profile: PathBuf,
}

impl Chromium {
    /// Returns one with its profile in `folder`.
    pub fn new(folder: &Path) -> Self {
        Chromium { profile: folder.join("chromium") }
    }

    /// Returns the document of a page as it is once everything of it was loaded.
    ///
    /// # Errors
    /// The program is missing (`integration/test` installs it) or fails.
    pub fn document(&self, page: &Path) -> Result<String> {
        let output = self.run(&["--dump-dom".to_owned(), url(page)])?;
        String::from_utf8(output).context("the document is not text")
    }

    /// Takes a picture of so many points into a PNG file.
    ///
    /// # Errors
    /// The program is missing (`integration/test` installs it) or fails.
    pub fn picture(&self, page: &str, size: (u32, u32), into: &Path) -> Result<Vec<u8>> {
        let (width, height) = size;
        let size = format!("--window-size={width},{height}");
        self.run(&[size, format!("--screenshot={}", into.display()), page.to_owned()])?;
        fs::read(into).context("no picture was taken")
    }

    /// Prints a page into a PDF file.
    ///
    /// # Errors
    /// The program is missing (`integration/test` installs it) or fails.
    pub fn print(&self, page: &Path, into: &Path) -> Result<Vec<u8>> {
        self.run(&[format!("--print-to-pdf={}", into.display()), url(page)])?;
        fs::read(into).context("nothing was printed")
    }

    fn run(&self, args: &[String]) -> Result<Vec<u8>> {
        let output = Command::new("chromium")
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", self.profile.display()))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("failed to start `chromium`; run ./integration/test")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "chromium failed: {said}");
        Ok(output.stdout)
    }
}

/// Returns the URL of a file.
pub fn url(page: &Path) -> String {
    format!("file://{}", page.display())
}

/// Returns width and height of a PNG picture.
///
/// # Errors
/// It is none.
pub fn size_of(picture: &[u8]) -> Result<(u32, u32)> {
    ensure!(picture.starts_with(b"\x89PNG\r\n\x1a\n") && picture.len() > 24, "this is no PNG");
    let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().expect("4 bytes"));
    Ok((number(16), number(20)))
}
