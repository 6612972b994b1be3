//! A proxy before the broker that knows frames: it counts what is published and not confirmed, and
//! breaks connections in every way that a network does, at a moment it was told.
//!
//! Two threads a connection, that look at the common state before every frame.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use super::frames::{Frame, Frames};
use crate::wait;

/// How often a thread that waits for bytes looks at what it was told: short beside every fault.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The heartbeat of connections, in seconds: a silent peer is noticed after twice as long, which
/// is long beside the pauses of a loaded machine.
const HEARTBEAT_S: u32 = 5;

/// What is read at once: RabbitMQ's largest frame.
const CHUNK_BYTES: usize = 131_072;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From dacapo to the broker.
    Up,
    /// From the broker to dacapo.
    Down,
}

/// A moment in what a consumer does, by the frame that it is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A message is delivered.
    Delivery,
    /// A message is acked.
    Ack,
}

/// Listens until dropped; then all connections through it end.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    broker: u16,
    state: Mutex<State>,
    changed: Condvar,
    connections: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    /// Connections with a number below this are reset.
    cut_below: u64,
    /// On connections with a number below this nothing passes, and neither side is told.
    stalled_below: u64,
    /// Connections with a number below this have this direction ended.
    half_closed: Option<(u64, Way)>,
    /// Connections with a number below this send a frame for which the broker closes the channel.
    wrong_below: u64,
    hold_up: bool,
    hold_down: bool,
    /// Holds as soon as so many messages were published.
    hold_at: Option<(u64, Way)>,
    /// Holds the frame of this moment, the first one that passes.
    hold_before: Option<Moment>,
    /// How long each frame takes.
    pause: Duration,
    /// How long an answer of the broker takes.
    lag: Duration,
    published: u64,
    /// How often the broker has refused, since the same moment.
    nacked: u64,
    /// How often the broker has closed a channel or blocked a connection, ever.
    channels_closed: u64,
    blocked: u64,
    /// Published and not confirmed, by connection and channel.
    open: BTreeMap<(u64, u16), Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    last: u64,
    unconfirmed: BTreeSet<u64>,
}

impl Wire {
    /// Starts one before the broker's port.
    ///
    /// # Errors
    /// No port is free.
    pub fn before(broker: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
        let address = listener.local_addr().context("a bound socket has an address")?;
        let shared = Arc::new(Shared {
            broker,
            state: Mutex::default(),
            changed: Condvar::new(),
            connections: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || listen(&listener, &of_thread));
        Ok(Wire { address, shared })
    }

    /// Returns the broker's URL, which has a login, through this proxy.
    pub fn url(&self, of_broker: &str) -> String {
        let (login, _) = of_broker.rsplit_once('@').unwrap_or((of_broker, ""));
        format!("{login}@{}/%2f?heartbeat={HEARTBEAT_S}", self.address)
    }

    /// Passes everything from now on, and counts publishes anew; broken connections stay so.
    pub fn heal(&self) {
        self.tell(|state| {
            state.hold_up = false;
            state.hold_down = false;
            state.hold_at = None;
            state.hold_before = None;
            state.pause = Duration::ZERO;
            state.lag = Duration::ZERO;
            state.published = 0;
            state.nacked = 0;
        });
    }

    /// Lets answers of the broker take so long, so that a window fills.
    pub fn lag(&self, lag: Duration) {
        self.tell(|state| state.lag = lag);
    }

    /// Holds one direction as soon as `count` messages were published since [`Wire::heal`]: going
    /// up, the last of them and all after it; going down, every answer.
    pub fn hold_at(&self, count: u64, way: Way) {
        self.tell(|state| state.hold_at = Some((count, way)));
    }

    /// Holds the next frame of this moment, and all after it that go the same way.
    pub fn hold_before(&self, moment: Moment) {
        self.tell(|state| state.hold_before = Some(moment));
    }

    /// Waits until it holds.
    ///
    /// # Errors
    /// It does not within `deadline`.
    pub fn await_hold(&self, deadline: Duration) -> Result<()> {
        wait::until("a window is in flight", deadline, || {
            let state = self.shared.lock();
            Ok((state.hold_up || state.hold_down).then_some(()))
        })
    }

    /// Returns how many messages were published and not confirmed on connections that are there.
    pub fn unconfirmed(&self) -> usize {
        self.shared.lock().unconfirmed()
    }

    /// Returns how many messages were published since [`Wire::heal`].
    pub fn published(&self) -> u64 {
        self.shared.lock().published
    }

    /// Returns how often the broker refused since [`Wire::heal`].
    pub fn nacked(&self) -> u64 {
        self.shared.lock().nacked
    }

    /// Lets nothing pass any more on the connections that are there, as a firewall that has
    /// forgotten them; returns when dacapo has noticed and made a new one, which passes.
    ///
    /// # Errors
    /// It does not within `deadline`.
    pub fn stall(&self, deadline: Duration) -> Result<()> {
        let below = self.connections();
        self.tell(|state| state.stalled_below = below);
        wait::until("a silent connection is given up", deadline, || {
            Ok((self.connections() > below).then_some(()))
        })?;
        self.tell(|state| state.cut_below = below);
        Ok(())
    }

    /// Resets all connections; what was held is dropped. New ones pass.
    pub fn cut(&self) {
        let below = self.connections();
        self.tell(|state| state.cut_below = below);
    }

    /// Ends one direction of all connections, in order, as a peer that has died in part would.
    pub fn half_close(&self, way: Way) {
        let below = self.connections();
        self.tell(|state| state.half_closed = Some((below, way)));
    }

    /// Makes the broker close the channels of all connections, with an ack of what was never
    /// delivered.
    pub fn close_channels(&self) {
        let below = self.connections();
        self.tell(|state| state.wrong_below = below);
    }

    /// Waits until the broker has closed more channels than `before`.
    ///
    /// # Errors
    /// It does not within `deadline`.
    pub fn await_channel_closed(&self, before: u64, deadline: Duration) -> Result<()> {
        wait::until("the broker closes a channel", deadline, || {
            Ok((self.channels_closed() > before).then_some(()))
        })
    }

    /// Returns how often the broker has closed a channel.
    pub fn channels_closed(&self) -> u64 {
        self.shared.lock().channels_closed
    }

    /// Waits until the broker has blocked more connections than `before`.
    ///
    /// # Errors
    /// It does not within `deadline`.
    pub fn await_blocked(&self, before: u64, deadline: Duration) -> Result<()> {
        wait::until("the broker blocks a connection", deadline, || {
            Ok((self.blocked() > before).then_some(()))
        })
    }

    /// Returns how often the broker has blocked a connection.
    pub fn blocked(&self) -> u64 {
        self.shared.lock().blocked
    }

    /// Lets each frame take so long.
    pub fn slow(&self, pause: Duration) {
        self.tell(|state| state.pause = pause);
    }

    /// Returns after so long: as long as a fault that mends itself is to last.
    pub fn endure(&self, time: Duration) {
        self.shared.pause(time, |_| false);
    }

    /// Returns what else can tell whether a window is in flight.
    pub fn gauge(&self) -> Gauge {
        Gauge(Arc::clone(&self.shared))
    }

    /// Returns how many connections there were so far.
    fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }
}

/// Tells how many messages are published and not confirmed, after its proxy is gone too.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Shared>);

impl Gauge {
    /// Returns how many.
    pub fn unconfirmed(&self) -> usize {
        self.0.lock().unconfirmed()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tell(|state| state.ended = true);
        // Wakes the listener; one that has ended needs no waking.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a time, or until something changes and `done` says so; never longer.
    fn pause(&self, time: Duration, done: impl Fn(&State) -> bool) {
        if !time.is_zero() {
            let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !done(state));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl State {
    fn unconfirmed(&self) -> usize {
        self.open.values().map(|channel| channel.unconfirmed.len()).sum()
    }

    fn is_cut(&self, connection: u64) -> bool {
        self.ended || connection < self.cut_below
    }

    fn holds(&self, connection: u64, way: Way) -> bool {
        let holds = match way {
            Way::Up => self.hold_up,
            Way::Down => self.hold_down,
        };
        holds || self.is_stalled(connection)
    }

    fn is_stalled(&self, connection: u64) -> bool {
        connection < self.stalled_below
    }

    /// Holds a frame, and what comes after it, if it is the one that was asked for.
    fn hold(&mut self, way: Way, frame: &Frame<'_>) {
        match (self.hold_before, way) {
            (Some(Moment::Delivery), Way::Down) if frame.is_delivery() => self.hold_down = true,
            (Some(Moment::Ack), Way::Up) if frame.is_ack() => self.hold_up = true,
            _ => return,
        }
        self.hold_before = None;
    }

    /// Notes a frame before it is passed on.
    fn note(&mut self, connection: u64, frame: &Frame<'_>) {
        if frame.is_publish() {
            let channel = self.open.entry((connection, frame.channel())).or_default();
            channel.last += 1;
            channel.unconfirmed.insert(channel.last);
            self.published += 1;
            if let Some((count, way)) = self.hold_at
                && self.published >= count
            {
                self.hold_at = None;
                match way {
                    Way::Up => self.hold_up = true,
                    Way::Down => self.hold_down = true,
                }
            }
        }
    }

    /// Notes a frame after it was passed on.
    fn note_answer(&mut self, connection: u64, frame: &Frame<'_>) {
        self.nacked += u64::from(frame.is_nack());
        self.channels_closed += u64::from(frame.is_channel_close());
        self.blocked += u64::from(frame.is_blocked());
        if let Some((tag, multiple)) = frame.confirm()
            && let Some(channel) = self.open.get_mut(&(connection, frame.channel()))
        {
            match multiple {
                true => channel.unconfirmed.retain(|open| *open > tag),
                false => drop(channel.unconfirmed.remove(&tag)),
            }
        }
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.lock().ended {
            return;
        }
        // A broker that is down refuses; so does this.
        let Ok(client) = client else { continue };
        let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.broker)) else { continue };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let (client, broker) = (Arc::new(client), Arc::new(broker));
        for way in [Way::Up, Way::Down] {
            let (from, to) = match way {
                Way::Up => (Arc::clone(&client), Arc::clone(&broker)),
                Way::Down => (Arc::clone(&broker), Arc::clone(&client)),
            };
            let shared = Arc::clone(shared);
            std::thread::spawn(move || {
                let passing = Passing { shared: &shared, number, way, from: &from, to: &to };
                // However it ends, the connection ends: that is the peers' to report.
                passing.run().ok();
                shared.lock().open.retain(|(connection, _), _| *connection != number);
            });
        }
    }
}

/// One direction of one connection.
struct Passing<'a> {
    shared: &'a Shared,
    number: u64,
    way: Way,
    from: &'a TcpStream,
    to: &'a TcpStream,
}

impl Passing<'_> {
    fn run(&self) -> io::Result<()> {
        self.from.set_read_timeout(Some(LOOK_INTERVAL))?;
        self.to.set_nodelay(true)?;
        let mut frames = Frames::new(self.way == Way::Up);
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut wronged = 0;
        let mut half_closed = false;
        loop {
            let stalled = self.shared.changed.wait_while(self.shared.lock(), |state| {
                state.is_stalled(self.number) && !state.is_cut(self.number)
            });
            let state = stalled.unwrap_or_else(PoisonError::into_inner);
            if state.is_cut(self.number) {
                drop(state);
                return self.reset();
            }
            let ends = |(below, way)| way == self.way && self.number < below;
            let half_close = !half_closed && state.half_closed.is_some_and(ends);
            let wrong_below = state.wrong_below;
            drop(state);
            if half_close {
                half_closed = true;
                self.to.shutdown(Shutdown::Write)?;
            }
            let wrongs = self.way == Way::Up && self.number < wrong_below && wronged < wrong_below;
            if wrongs && frames.is_between_messages() && frames.channel() > 0 {
                wronged = wrong_below;
                let mut to = self.to;
                to.write_all(&Frame::wrong_ack(frames.channel()))?;
            }
            let mut from = self.from;
            match from.read(&mut chunk) {
                Ok(0) => {
                    self.to.shutdown(Shutdown::Write).ok();
                    return Ok(());
                }
                Ok(_) if half_closed => {}
                Ok(bytes) => frames.push(&chunk[..bytes]),
                Err(error) if is_timeout(&error) => {}
                Err(error) => {
                    self.reset()?;
                    return Err(error);
                }
            }
            while let Some(frame) = frames.take() {
                if !self.pass(&Frame::of(&frame))? {
                    return self.reset();
                }
            }
        }
    }

    /// Returns whether it could be passed before the connection was cut.
    fn pass(&self, frame: &Frame<'_>) -> io::Result<bool> {
        let mut state = self.shared.lock();
        state.hold(self.way, frame);
        if self.way == Way::Up {
            state.note(self.number, frame);
            self.shared.changed.notify_all();
        }
        let pause = state.pause + if self.way == Way::Down { state.lag } else { Duration::ZERO };
        drop(state);
        self.shared.pause(pause, |state| state.is_cut(self.number));
        let held = self.shared.changed.wait_while(self.shared.lock(), |state| {
            state.holds(self.number, self.way) && !state.is_cut(self.number)
        });
        let state = held.unwrap_or_else(PoisonError::into_inner);
        if state.is_cut(self.number) {
            return Ok(false);
        }
        drop(state);
        let mut to = self.to;
        to.write_all(frame.bytes())?;
        if self.way == Way::Down {
            self.shared.lock().note_answer(self.number, frame);
        }
        Ok(true)
    }

    /// Makes the end of both sockets a reset instead of an end in order.
    fn reset(&self) -> io::Result<()> {
        for socket in [self.from, self.to] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
        // The other direction holds them too, and would wait for bytes otherwise.
        self.shared.changed.notify_all();
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
