//! Opens the parts that commands are made of.

use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_archive::store::file::FileStore;
use dacapo_engine::sync::{self, SyncReport};
use dacapo_index::{Holder, Index};
use dacapo_s3::S3Store;

use crate::exit::Failure;
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
        (ArchiveUrl::S3(options), _) => Arc::new(S3Store::connect(options.clone()).await?),
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
        output.talk(&format!("warning: {problem} (`{segment}`)"));
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

/// Refuses an archive without a single event: a wrong prefix looks like that.
pub fn refuse_empty(index: &Index, store: &Arc<dyn Store>) -> anyhow::Result<()> {
    if index.stats()?.segments == 0 {
        let problem = format!(
            "the archive at {} is empty; check --archive, or fill it with `dacapo archive run` or \
             `dacapo archive import`",
            store.location()
        );
        return Err(Failure::configuration(problem).into());
    }
    Ok(())
}
