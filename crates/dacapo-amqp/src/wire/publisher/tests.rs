//! The sink's end, when the connection behind it is gone.

use super::*;

/// A publisher and what its thread has of it.
struct Thread {
    settled: mpsc::Sender<Vec<Outcome>>,
    stands: watch::Sender<Standing>,
    end: oneshot::Sender<Ended>,
}

fn publisher() -> (Publisher, Thread) {
    let (orders, _) = mpsc::channel(ORDERS);
    let (settled, outcomes) = mpsc::channel(1);
    let (stands, standing) = watch::channel(Standing::Open);
    let (end, ended) = oneshot::channel();
    let publisher = Publisher {
        orders,
        outcomes,
        standing,
        ended: Some(ended),
        late: Vec::new(),
        error: None,
        peer: "broker".to_owned(),
        frame_max: 131_072,
    };
    (publisher, Thread { settled, stands, end })
}

impl Thread {
    fn end(self, settled: Vec<Outcome>) {
        assert!(self.end.send(Ended { settled, error: lost("broker", "it went away") }).is_ok());
    }
}

/// Nothing else tells of it if nothing is unanswered.
#[tokio::test]
async fn an_end_while_the_connection_is_blocked_is_seen() {
    let (mut publisher, thread) = publisher();
    thread.stands.send_replace(Standing::Blocked);
    assert!(publisher.is_blocked() && !publisher.has_ended());
    thread.end(Vec::new());
    assert!(publisher.has_ended());
    assert!(publisher.reason().await.to_string().contains("it went away"));
}

#[tokio::test]
async fn what_was_known_before_the_end_is_told_though_sending_heard_of_it_first() {
    let (mut publisher, thread) = publisher();
    thread.settled.send(vec![Outcome::Confirmed]).await.unwrap();
    thread.end(vec![Outcome::Confirmed, Outcome::Nacked]);
    let error = publisher.publish(Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("it went away"), "{error}");
    assert_eq!(publisher.outcomes().await.unwrap(), [Outcome::Confirmed]);
    assert_eq!(publisher.outcomes().await.unwrap(), [Outcome::Confirmed, Outcome::Nacked]);
    assert!(publisher.outcomes().await.is_err());
}
