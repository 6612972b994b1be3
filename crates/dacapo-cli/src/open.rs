//! Opens the parts that commands are made of.

use std::sync::Arc;

use dacapo_archive::layout;
use dacapo_archive::store::Store;
use dacapo_archive::store::file::FileStore;
use dacapo_engine::sync::{self, SyncReport};
use dacapo_index::{Holder, Index};
use dacapo_s3::S3Store;

use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::{ArchiveUrl, Settings};

/// What a command does with the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It must be there.
    Read,
    /// A directory is made if it is not there; a bucket never is.
    Write,
}

/// Opens the archive.
pub async fn store(settings: &Settings, access: Access) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match (settings.archive()?, access) {
        (ArchiveUrl::Directory(path), Access::Read) => Arc::new(FileStore::open(path).await?),
        (ArchiveUrl::Directory(path), Access::Write) => Arc::new(FileStore::create(path).await?),
        (ArchiveUrl::S3(options), access) => {
            let store = S3Store::connect(options.clone()).await?;
            if access == Access::Write {
                // Some servers make a bucket of any name that is written to.
                store.list(layout::HEADS, None).await?;
            }
            Arc::new(store)
        }
    })
}

/// Opens the index of an archive and brings it up to date; `command` is told to whoever wants it
/// meanwhile.
pub async fn synced_index(
    settings: &Settings,
    store: &Arc<dyn Store>,
    output: &Output,
    command: &str,
) -> anyhow::Result<(Index, SyncReport)> {
    let index = index(settings, store, command)?;
    let report = sync_index(store, &index, output).await?;
    Ok((index, report))
}

/// Opens the index of an archive as it is.
pub fn index(settings: &Settings, store: &Arc<dyn Store>, command: &str) -> anyhow::Result<Index> {
    let holder = Holder { command: format!("dacapo {command}"), since: settings.now() };
    Ok(Index::open(&settings.index_dir(&store.location()), &holder)?)
}

/// Throws the index away and opens an empty one; works on a damaged one, too.
pub fn index_anew(
    settings: &Settings,
    store: &Arc<dyn Store>,
    command: &str,
) -> anyhow::Result<Index> {
    let holder = Holder { command: format!("dacapo {command}"), since: settings.now() };
    Ok(Index::open_anew(&settings.index_dir(&store.location()), &holder)?)
}

/// Brings an index up to date, with progress, and warns of what it could not read.
pub async fn sync_index(
    store: &Arc<dyn Store>,
    index: &Index,
    output: &Output,
) -> anyhow::Result<SyncReport> {
    let mut steps = Steps::new(output, "reading footers");
    let report = sync::sync(store, index, |progress| steps.at(progress.done, progress.all)).await?;
    steps.finish();
    for (segment, problem) in &report.unreadable {
        let named = problem.contains(segment.as_str());
        let place = if named { String::new() } else { format!("`{segment}`: ") };
        output.talk(&format!("warning: {place}{problem}"));
    }
    for gap in &report.gaps {
        let problem = format!(
            "warning: stream `{}` lacks sequences {} to {}; run `dacapo archive verify`",
            gap.stream, gap.first, gap.last
        );
        output.talk(&problem);
    }
    Ok(report)
}

/// Returns how a command ends that has shown what there is: an archive that lacks something is
/// damaged, whatever was shown of it.
pub fn exit_of(report: &SyncReport) -> Exit {
    if report.is_complete() { Exit::Success } else { Exit::Damaged }
}

/// Refuses an archive without a single event that could be read.
pub fn refuse_empty(
    index: &Index,
    report: &SyncReport,
    store: &Arc<dyn Store>,
) -> anyhow::Result<()> {
    if index.stats()?.segments > 0 {
        return Ok(());
    }
    if report.is_complete() {
        return Err(empty(store).into());
    }
    let problem = format!(
        "no segment of the archive at {} is readable; run `dacapo archive verify`",
        store.location()
    );
    Err(Failure::damaged(problem).into())
}

/// Returns the error of an archive that has nothing in it: a wrong prefix looks like that.
pub fn empty(store: &Arc<dyn Store>) -> Failure {
    Failure::configuration(format!(
        "the archive at {} is empty; check --archive, or fill it with `dacapo archive run` or \
         `dacapo archive import`",
        store.location()
    ))
}
