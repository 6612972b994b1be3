//! The archiver's own lag, as its metrics tell it.

use std::time::Duration;

use super::queries;

/// How long the archiver may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// The metric, without labels.
const METRIC: &str = "dacapo_archiver_lag_seconds";

/// Asks an archiver for its lag.
pub async fn of_archiver(url: &str) -> Result<Duration, String> {
    let text = queries::page(url, DEADLINE).await?;
    read(&text)
}

fn read(text: &str) -> Result<Duration, String> {
    let value = text.lines().find_map(|line| line.strip_prefix(METRIC)?.strip_prefix(' '));
    let value =
        value.ok_or_else(|| format!("there is no `{METRIC}`; is this an archiver's /metrics?"))?;
    let seconds: Option<f64> = value.split(' ').next().and_then(|value| value.parse().ok());
    let lag = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    lag.ok_or_else(|| format!("`{METRIC}` is no length of time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_found_among_metrics() {
        let text = "# TYPE dacapo_archiver_lag_seconds gauge\ndacapo_archiver_lag_seconds 12.5\n";
        assert_eq!(read(text), Ok(Duration::from_millis(12_500)));
        assert_eq!(read("dacapo_archiver_lag_seconds 0 1700000000\n"), Ok(Duration::ZERO));
        for bad in ["", "dacapo_archiver_lag_seconds_x 1\n", "dacapo_archiver_lag_seconds NaN\n"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
