//! RabbitMQ's permissions, row by row.

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::process::Signal;
use dacapo_integration::wait;
use serde_json::{Value, json};

use crate::platform::{DEADLINE, ask, get, id, metric_in};
use crate::services;
use crate::witness;

/// What a row allows: the names that configure, write and read match.
type Allowed = [Vec<String>; 3];

/// Returns the rows of the document's table: each command, and what it says is allowed.
fn table() -> Vec<(String, Allowed)> {
    let text = super::operations();
    let mut lines = text.lines().skip_while(|line| !line.starts_with("| command | configure"));
    assert!(lines.next().is_some(), "the document has no table of permissions");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let row = row.trim_matches('|').replace("\\|", "\n");
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [command, configure, write, read] = cells[..] else { panic!("not four cells: {row}") };
        (command.to_owned(), [configure, write, read].map(alternatives))
    })
    .collect()
}

/// Returns the names in `^(one|another)$`; the bars are line ends here.
fn alternatives(expression: &str) -> Vec<String> {
    let inner = expression.strip_prefix('^').and_then(|rest| rest.strip_suffix('$'));
    let inner = inner.unwrap_or_else(|| panic!("`{expression}` does not match whole names"));
    let names = inner.trim_start_matches('(').trim_end_matches(')').split('\n');
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Returns an expression that matches these names only.
fn expression(names: &[String]) -> String {
    match names {
        [] => "^$".to_owned(),
        names => format!("^({})$", names.join("|")),
    }
}

/// A user on the broker who may do what it is told, an exchange, and a queue that is bound to it.
struct Stage {
    management: String,
    vhost: String,
    /// With the user's credentials.
    url: String,
    user: String,
    exchange: String,
    queue: String,
    dacapo: Dacapo,
}

impl Stage {
    /// Returns one, unless the broker has no management plugin to make users with.
    fn new() -> Option<Self> {
        let management = services::management()?;
        let url = services::amqp();
        let (_, place) = url.rsplit_once('@').expect("the broker's URL has credentials");
        let (_, vhost) = place.split_once('/').expect("the broker's URL has a virtual host");
        let user = services::unique("user");
        let (exchange, queue) = (services::unique("exchange"), services::unique("queue"));
        for operation in [
            json!({ "op": "declare_exchange", "exchange": exchange }),
            json!({ "op": "declare_queue", "queue": queue }),
            json!({ "op": "bind_queue", "queue": queue, "exchange": exchange, "routing_key": "#" }),
        ] {
            ask(&url, operation);
        }
        let mut dacapo = Dacapo::new();
        let own_url = format!("amqp://{user}:sesame@{place}");
        dacapo.set("DACAPO_AMQP", &own_url);
        let event = json!({ "id": id(1), "exchange": exchange, "routing_key": "k", "body": {} });
        dacapo
            .run_with_input(
                ["archive", "import", "-", "--name", "history"],
                format!("{event}\n").into_bytes(),
            )
            .check(0);
        let vhost = vhost.to_owned();
        let stage = Stage { management, vhost, url: own_url, user, exchange, queue, dacapo };
        stage.manage(json!([[
            "PUT",
            format!("users/{}", stage.user),
            { "password": "sesame", "tags": "" }
        ]]));
        Some(stage)
    }

    fn manage(&self, requests: Value) {
        witness::management(&self.management, &requests).expect("the broker manages users");
    }

    /// Runs a command as a user with these permissions.
    fn run(&self, command: &str, allowed: &Allowed) -> Output {
        // A new one each time: RabbitMQ asks for some permissions only when a queue is created.
        let archive = services::unique("archive");
        let queue = match command {
            "backfill --queue" => self.new_queue(),
            _ => self.queue.clone(),
        };
        let named = |name: &String| {
            let name = name.replace("EXCHANGE", &self.exchange).replace("QUEUE", &queue);
            name.replace("ARCHIVE", &archive)
        };
        let [configure, write, read] = allowed
            .each_ref()
            .map(|names| expression(&names.iter().map(named).collect::<Vec<_>>()));
        self.manage(json!([[
            "PUT",
            format!("permissions/{}/{}", self.vhost, self.user),
            { "configure": configure, "write": write, "read": read }
        ]]));
        if command == "archive run" {
            return self.archive(&archive);
        }
        let mut args: Vec<&str> = command.split(' ').collect();
        if let Some(at) = args.iter().position(|arg| *arg == "--to-queue") {
            args.insert(at + 1, &self.queue);
        }
        if let Some(at) = args.iter().position(|arg| *arg == "--to-exchange") {
            args.insert(at + 1, &self.exchange);
        }
        if command == "backfill --queue" {
            return self.backfill(&archive);
        }
        if let Some(at) = args.iter().position(|arg| *arg == "URL") {
            args[at] = &self.url;
        }
        if args[0] == "demo" {
            args.extend(["--events", "100"]);
        }
        if args[0] == "replay" {
            args.push("--yes");
        }
        self.dacapo.run(args)
    }

    /// Returns the name of a queue that is not bound yet, for a backfill.
    fn new_queue(&self) -> String {
        format!("{}-new", self.queue)
    }

    /// Runs a backfill to its end, beside an archiver that may do everything.
    fn backfill(&self, archive: &str) -> Output {
        let admin = services::amqp();
        let mut args = vec!["archive", "run", "--log", "info", "--amqp", &admin];
        args.extend(["--bind", &self.exchange, "--queue", archive]);
        let archiver = self.dacapo.spawn(args);
        archiver.wait_for_line("consuming", DEADLINE);
        let queue = self.new_queue();
        ask(&admin, json!({ "op": "declare_queue", "queue": queue }));
        let mut args = vec!["backfill", "--queue", &queue, "--bind", &self.exchange];
        args.extend(["--archiver-queue", archive]);
        let output = self.dacapo.run(args);
        archiver.signal(Signal::Terminate).expect("it runs");
        archiver.wait(DEADLINE).check(0);
        for queue in [archive, &format!("{archive}.parked"), &queue] {
            ask(&admin, json!({ "op": "delete_queue", "queue": queue }));
        }
        output
    }

    /// Runs an archiver until it ends by itself or has archived an event.
    fn archive(&self, queue: &str) -> Output {
        let mut args = vec!["archive", "run", "--log", "info", "--roll-age", "1s"];
        args.extend(["--metrics", "127.0.0.1:0"]);
        args.extend(["--bind", &self.exchange, "--queue", queue]);
        let mut running = self.dacapo.spawn(args);
        let what = "the archiver consumes or ends";
        let consumes = wait::until(what, DEADLINE, || {
            let ended = !running.is_running()?;
            let consumes = running.written().1.contains("consuming");
            Ok((ended || consumes).then_some(consumes))
        });
        if consumes.expect("it does either") {
            let op = json!({
                "op": "publish", "exchange": self.exchange, "routing_key": "k", "body": "{}",
            });
            ask(&services::amqp(), op);
            let told = running.wait_for_line("metrics: http://", DEADLINE);
            let (_, address) = told.split_once("http://").expect("it was looked for");
            let (address, _) = address.split_once('/').expect("a path follows");
            let archived = || {
                let events = metric_in(&get(address, "/metrics").1, "dacapo_archiver_events_total");
                Ok((events == Some(1.0)).then_some(()))
            };
            wait::until("the event is archived", DEADLINE, archived)
                .expect("it consumes, so it archives");
            running.signal(Signal::Terminate).expect("it runs");
        }
        let output = running.wait(DEADLINE);
        for queue in [queue, &format!("{queue}.parked")] {
            ask(&services::amqp(), json!({ "op": "delete_queue", "queue": queue }));
        }
        output
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A broker that is down at the end of a test keeps them, and no other test minds.
        let user = json!([["DELETE", format!("users/{}", self.user), null]]);
        witness::management(&self.management, &user).ok();
        let delete = [
            json!({ "op": "delete_queue", "queue": self.queue }),
            json!({ "op": "delete_exchange", "exchange": self.exchange }),
        ];
        witness::raw_amqp(&services::amqp(), &delete).ok();
    }
}

#[test]
fn each_command_works_with_the_permissions_of_its_row_and_with_none_less() {
    let Some(stage) = Stage::new() else { return };
    let rows = table();
    assert_eq!(rows.len(), 9, "a row that is new here needs a look at `Stage::run`");
    let mut wrong = Vec::new();
    for (command, allowed) in rows {
        let output = stage.run(&command, &allowed);
        if output.status != Some(0) {
            wrong.push(format!("`{command}` as documented: {output:?}"));
        }
        for (cell, names) in allowed.iter().enumerate() {
            for (at, name) in names.iter().enumerate() {
                let mut less = allowed.clone();
                less[cell].remove(at);
                let output = stage.run(&command, &less);
                let told = ["ACCESS_REFUSED", &stage.user, "rabbitmqctl set_permissions"]
                    .iter()
                    .all(|words| output.stderr.contains(words));
                if output.status != Some(5) || !told {
                    let cell = ["configure", "write", "read"][cell];
                    wrong.push(format!("`{command}` without {cell} `{name}`: {output:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
