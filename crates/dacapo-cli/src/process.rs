//! What every command that runs long tells Prometheus of itself: its version, and of the process
//! what Prometheus' own libraries tell, under the same names.

use std::fmt;
use std::fs;
use std::time::Duration;

use dacapo_event::{Clock, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Linux tells CPU time in hundredths of a second, whatever its own clock ticks at.
const TICKS_PER_SECOND: f64 = 100.0;

/// The fields of `/proc/self/stat` after the program's name, which may contain anything; `utime`
/// and `stime` are the 14th and 15th of all.
const CPU_FIELDS: [usize; 2] = [11, 12];

/// Returns a registry with `dacapo_build_info` and `process_…`.
pub fn registry(clock: Clock) -> Registry {
    let mut registry = Registry::default();
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("dacapo_build", "The version that runs", version);
    registry.register_collector(Box::new(Process { began: clock() }));
    registry
}

/// Read when it is scraped. What the system does not tell is absent: all but the start, where
/// there is no `/proc`.
#[derive(Debug)]
struct Process {
    began: Timestamp,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let micros = u64::try_from(self.began.as_micros()).unwrap_or(0);
        let began = Duration::from_micros(micros).as_secs_f64();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(seconds) = cpu_seconds(&stat) {
            let help = "CPU time used, in user and system";
            let counter = ConstCounter::new(seconds);
            let kind = counter.metric_type();
            let unit = Unit::Seconds;
            counter.encode(encoder.encode_descriptor("process_cpu", help, Some(&unit), kind)?)?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        // One of them is the folder that is being read.
        let open = fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as f64 - 1.0);
        let gauges = [
            ("process_start_time", "When it started", Some(Unit::Seconds), Some(began)),
            (
                "process_resident_memory",
                "Resident memory",
                Some(Unit::Bytes),
                resident_bytes(&status),
            ),
            ("process_open_fds", "Open file descriptors", None, open),
            ("process_max_fds", "The most file descriptors it may open", None, max_fds(&limits)),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
        }
        Ok(())
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let mut ticks = 0.0;
    for at in CPU_FIELDS {
        ticks += fields.get(at)?.parse::<f64>().ok()?;
    }
    Some(ticks / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1_024.0)
}

/// The soft limit; `unlimited` is none.
fn max_fds(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_understood() {
        let stat = "7 (da) ca po) S 1 7 7 0 -1 4194560 9 0 0 0 250 125 0 0 20 0 3 0 42 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.75));
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        let limits = "Max processes    7   8   processes\nMax open files    1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1_024.0));
        assert_eq!((cpu_seconds(""), resident_bytes(""), max_fds("")), (None, None, None));
    }

    #[test]
    fn the_version_and_the_process_are_told_in_their_usual_names() {
        let registry = registry(|| "2026-11-23T12:00:00Z".parse().unwrap());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        for line in [
            format!("dacapo_build_info{{version=\"{version}\"}} 1"),
            "process_start_time_seconds 1795435200.0".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds"] {
            let line = format!("process_{name} ");
            assert!(text.lines().any(|found| found.starts_with(&line)), "{line} is not in\n{text}");
        }
    }
}
