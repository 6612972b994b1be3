//! SIGINT and SIGTERM (SIGHUP as well where it is asked for): the first asks to finish in order, a second of them ends at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// The signals that ask a process to end.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Takes the signals; from now on they no longer end the process by themselves.
    pub fn take() -> anyhow::Result<Self> {
        let take = |kind| {
            signal(kind)
                .map_err(|error| Failure::configuration(format!("no signals here: {error}")))
        };
        Ok(Signals {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// Takes SIGHUP as well, which a terminal that is closed sends; unless the process was started to
    /// ignore it (`nohup`) or that is not known.
    pub fn and_hangup(mut self) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if ignores_hangup(&status) == Some(false) {
            let taken = signal(SignalKind::hangup());
            let failed = |error| Failure::configuration(format!("no signals here: {error}"));
            self.hangup = Some(taken.map_err(failed)?);
        }
        Ok(self)
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = next_if_taken(self.hangup.as_mut()) => {}
        }
    }
}

async fn next_if_taken(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Reads Linux's account of a process: the lowest bit of a mask is signal 1.
fn ignores_hangup(status: &str) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    Some(u64::from_str_radix(mask.trim(), 16).ok()? & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_a_hangup_is_ignored_is_read_from_the_mask() {
        assert_eq!(ignores_hangup("SigBlk:\t0\nSigIgn:\t0000000000001001\n"), Some(true));
        assert_eq!(ignores_hangup("SigIgn:\t0000000000001000\n"), Some(false));
        assert_eq!(ignores_hangup(""), None);
    }
}
