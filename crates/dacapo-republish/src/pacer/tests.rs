//! Pace, on tokio's paused clock.

use std::num::NonZeroU64;

use super::*;

const BATCH: usize = 200;

/// What went when: since the beginning, how many events, how many bytes.
type Gone = Vec<(Duration, u64, u64)>;

/// Runs messages of `bytes` each against the pace for `length`.
async fn run(pace: Pace, bytes: u64, length: Duration) -> Gone {
    let start = Instant::now();
    let mut pacer = Pacer::new(&pace, start);
    let mut gone = Gone::new();
    loop {
        let now = Instant::now();
        if now - start >= length {
            return gone;
        }
        let next = std::iter::repeat_n(Due { time: Timestamp::EPOCH, bytes }, BATCH);
        match pacer.admit(now, next) {
            Admit::Now(count) => gone.push((now - start, count as u64, count as u64 * bytes)),
            Admit::At(at) => tokio::time::sleep_until(at).await,
        }
    }
}

/// Returns the most in any second, of what `of` picks.
fn busiest_second(gone: &Gone, of: impl Fn(&(Duration, u64, u64)) -> u64) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for entry in gone {
        sum += of(entry);
        while entry.0 - gone[first].0 >= Duration::from_secs(1) {
            sum -= of(&gone[first]);
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

fn events(gone: &Gone) -> u64 {
    gone.iter().map(|(_, events, _)| events).sum()
}

async fn check_rate(rate: u32) {
    let pace = Pace { rate: NonZeroU32::new(rate), ..Pace::default() };
    let gone = run(pace, 100, Duration::from_secs(10)).await;
    let most = busiest_second(&gone, |(_, events, _)| *events);
    let allowed = (u64::from(rate) * 105 / 100).max(u64::from(rate));
    assert!(most <= allowed, "{rate}/s: {most} in a second");
    let total = events(&gone);
    let wanted = u64::from(rate) * 10;
    assert!(total >= wanted * 97 / 100, "{rate}/s: only {total} in 10 s");
}

#[tokio::test(start_paused = true)]
async fn no_second_exceeds_the_rate_by_more_than_a_twentieth_and_little_is_left_unused() {
    for rate in [1, 2, 7, 20, 24, 25, 50, 99, 500, 5_000, 22_000, 100_000] {
        check_rate(rate).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_without_limit_never_waits() {
    let mut pacer = Pacer::new(&Pace::default(), Instant::now());
    let next = std::iter::repeat_n(Due { time: Timestamp::EPOCH, bytes: 1 }, BATCH);
    assert_eq!(pacer.admit(Instant::now(), next), Admit::Now(BATCH));
}

async fn check_byte_rate(rate: u64, body: u64) {
    let pace = Pace { byte_rate: NonZeroU64::new(rate), ..Pace::default() };
    let length = Duration::from_secs(10).max(Duration::from_secs(20 * body / rate));
    let gone = run(pace, body, length).await;
    let most = busiest_second(&gone, |(_, _, bytes)| *bytes);
    let allowed = (rate * 105 / 100).max(rate + body);
    assert!(most <= allowed, "{rate} B/s of {body}: {most} in a second");
    let total: u64 = gone.iter().map(|(_, _, bytes)| bytes).sum();
    let wanted = rate * length.as_secs();
    assert!(total + body >= wanted * 97 / 100, "{rate} B/s of {body}: only {total} in {length:?}");
    assert!(total <= wanted * 105 / 100 + body, "{rate} B/s of {body}: {total} in {length:?}");
}

#[tokio::test(start_paused = true)]
async fn bytes_are_limited_whatever_the_size_of_a_body() {
    check_byte_rate(10_000_000, 4_096).await;
    check_byte_rate(1_000_000, 100).await;
    check_byte_rate(700_000_000, 16_384).await;
    check_byte_rate(1_048_576, 1_048_576).await;
    check_byte_rate(3_000, 10_000).await;
    check_byte_rate(1_000_000, 16 * 1_048_576).await;
}

#[tokio::test(start_paused = true)]
async fn empty_bodies_cost_no_bytes() {
    let pace = Pace { byte_rate: NonZeroU64::new(1), ..Pace::default() };
    let mut pacer = Pacer::new(&pace, Instant::now());
    let next = std::iter::repeat_n(Due { time: Timestamp::EPOCH, bytes: 0 }, BATCH);
    assert_eq!(pacer.admit(Instant::now(), next), Admit::Now(BATCH));
}

#[tokio::test(start_paused = true)]
async fn events_and_bytes_are_limited_together() {
    let pace = Pace {
        rate: NonZeroU32::new(1_000),
        byte_rate: NonZeroU64::new(50_000),
        ..Pace::default()
    };
    let tight_bytes = events(&run(pace, 1_000, Duration::from_secs(10)).await);
    assert!((480..=530).contains(&tight_bytes), "{tight_bytes} of 1,000 bytes in 10 s");
    let tight_rate = events(&run(pace, 10, Duration::from_secs(10)).await);
    assert!((9_700..=10_100).contains(&tight_rate), "{tight_rate} of 10 bytes in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_ramp_rises_evenly_from_zero() {
    let ramp = Some(Duration::from_secs(10));
    let pace = Pace { rate: NonZeroU32::new(1_000), ramp, ..Pace::default() };
    let gone = run(pace, 1, Duration::from_secs(13)).await;
    for second in 0..13 {
        let went: u64 = gone
            .iter()
            .filter(|(at, _, _)| at.as_secs() == second)
            .map(|(_, events, _)| events)
            .sum();
        let expected = if second < 10 { 100 * second + 50 } else { 1_000 };
        assert!(went.abs_diff(expected) <= 40, "{went} in second {second}, not {expected}");
    }
}

fn at(seconds: u64) -> Due {
    Due { time: Timestamp::from_secs(1_700_000_000 + seconds), bytes: 0 }
}

#[tokio::test(start_paused = true)]
async fn the_original_timing_is_kept_at_its_speed() {
    let start = Instant::now();
    let pace = Pace { speed: Some(Speed::new(2.0).unwrap()), ..Pace::default() };
    let mut pacer = Pacer::new(&pace, start);
    // The third is older than the second: order counts for more than time.
    let history = [at(0), at(10), at(4), at(20), at(25)];
    let mut left: &[Due] = &history;
    let mut gone = Vec::new();
    while !left.is_empty() {
        match pacer.admit(Instant::now(), left.iter().copied()) {
            Admit::Now(count) => {
                gone.extend(std::iter::repeat_n((Instant::now() - start).as_millis(), count));
                left = &left[count..];
            }
            Admit::At(at) => tokio::time::sleep_until(at).await,
        }
    }
    assert_eq!(gone, [0, 5_000, 5_000, 10_000, 12_500]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_moves_the_original_timing_instead_of_bunching_it() {
    let start = Instant::now();
    let pace = Pace { speed: Some(Speed::new(1.0).unwrap()), ..Pace::default() };
    let mut pacer = Pacer::new(&pace, start);
    assert_eq!(pacer.admit(start, [at(0), at(10)].into_iter()), Admit::Now(1));
    tokio::time::advance(Duration::from_secs(4)).await;
    pacer.hold(Instant::now());
    tokio::time::advance(Duration::from_secs(3_600)).await;
    pacer.hold(Instant::now());
    let due = start + Duration::from_secs(3_610);
    assert_eq!(pacer.admit(Instant::now(), [at(10)].into_iter()), Admit::At(due));
}

#[tokio::test(start_paused = true)]
async fn a_gap_of_ages_is_waited_for_in_pieces() {
    let pace = Pace { speed: Some(Speed::new(Speed::MIN).unwrap()), ..Pace::default() };
    let mut pacer = Pacer::new(&pace, Instant::now());
    let first = Due { time: Timestamp::MIN, bytes: 0 };
    let last = Due { time: Timestamp::MAX, bytes: 0 };
    let now = Instant::now();
    assert_eq!(pacer.admit(now, [first, last].into_iter()), Admit::Now(1));
    assert_eq!(pacer.admit(now, [last].into_iter()), Admit::At(now + WAIT_MAX));
}
