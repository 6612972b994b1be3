"""An AMQP 0-9-1 client of raw frames, which shares no code with dacapo and trusts no library.

    raw_amqp.py amqp://user:password@host:port/vhost < operations.json > results.json

It exists to say exactly what is on the wire: strings that are not UTF-8, every field type, an
absent header table beside an empty one. Operations are performed in order on one connection,
and each has one result; one that the broker refuses has `{"error": "404 NOT_FOUND - …"}`, and
the next goes on with a new channel.

Operations (`op`; other members have the defaults shown):
    {"op": "declare_queue", "queue": "q", "durable": true, "passive": false, "exclusive": false,
     "auto_delete": false, "arguments": []}              -> {"queue", "messages", "consumers"}
    {"op": "delete_queue", "queue": "q"}                 -> {"messages"}
    {"op": "purge_queue", "queue": "q"}                  -> {"messages"}
    {"op": "declare_exchange", "exchange": "x", "type": "topic", "durable": true,
     "passive": false, "arguments": []}                  -> {}
    {"op": "delete_exchange", "exchange": "x"}           -> {}
    {"op": "bind_queue", "queue": "q", "exchange": "x", "routing_key": "", "arguments": []} -> {}
    {"op": "unbind_queue", "queue": "q", "exchange": "x", "routing_key": "", "arguments": []} -> {}
    {"op": "publish", "exchange": "", "routing_key": "", "properties": {}, "body": "",
     "mandatory": true}         -> {"outcome": "ack" | "nack", "returned": null | "312 NO_ROUTE"}
    {"op": "get", "queue": "q", "max": 1, "ack": true}   -> {"messages": [MESSAGE…]}

A MESSAGE has `exchange`, `routing_key`, `redelivered`, `properties` (only those present),
`body`, `body_bytes`, `body_sha256`.

Bytes are a JSON string if they are UTF-8, else {"hex": "…"}. A body may also be given as
{"repeat": "ab", "times": 1000}, and is only told when it has at most BODY_SHOWN_MAX bytes.
A field table is a list of [name, tag, value], told in the order of its names, because brokers
and clients do not keep the order; an array is a list of [tag, value]. Floats (`f`, `d`) are
told as the hex of their bytes, and may be given as numbers; a decimal (`D`) is [scale, value].
"""

import hashlib
import json
import socket
import struct
import sys
from urllib.parse import unquote, urlsplit

TIMEOUT_S = 30
FRAME_MAX = 131072
BODY_SHOWN_MAX = 65536

METHOD, HEADER, BODY, HEARTBEAT, FRAME_END = 1, 2, 3, 8, 0xCE

# Name, kind and flag bit of each basic property, in the order of the wire.
PROPERTIES = [
    ("content_type", "short", 15),
    ("content_encoding", "short", 14),
    ("headers", "table", 13),
    ("delivery_mode", "octet", 12),
    ("priority", "octet", 11),
    ("correlation_id", "short", 10),
    ("reply_to", "short", 9),
    ("expiration", "short", 8),
    ("message_id", "short", 7),
    ("timestamp", "long", 6),
    ("type", "short", 5),
    ("user_id", "short", 4),
    ("app_id", "short", 3),
    ("cluster_id", "short", 2),
]

# Field types of fixed width: tag -> struct format.
FIXED = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "T": ">Q"}
FLOATS = {"f": ">f", "d": ">d"}


class Refused(Exception):
    """The broker closed the channel over what was asked."""


def to_bytes(value):
    if isinstance(value, str):
        return value.encode()
    if "hex" in value:
        return bytes.fromhex(value["hex"])
    return value["repeat"].encode() * value["times"]


def from_bytes(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def short(value):
    data = to_bytes(value)
    if len(data) > 255:
        raise ValueError(f"a short string has at most 255 bytes, not {len(data)}")
    return bytes([len(data)]) + data


def long(data):
    return struct.pack(">I", len(data)) + data


def write_field(tag, value):
    if tag in FIXED:
        return struct.pack(FIXED[tag], value)
    if tag in FLOATS:
        return bytes.fromhex(value) if isinstance(value, str) else struct.pack(FLOATS[tag], value)
    if tag == "t":
        return b"\x01" if value else b"\x00"
    if tag == "D":
        return struct.pack(">BI", *value)
    if tag in "Sx":
        return long(to_bytes(value))
    if tag == "F":
        return write_table(value)
    if tag == "A":
        return long(b"".join(item.encode() + write_field(item, v) for item, v in value))
    if tag == "V":
        return b""
    raise ValueError(f"there is no field type {tag!r}")


def write_table(rows):
    return long(b"".join(short(name) + tag.encode() + write_field(tag, v) for name, tag, v in rows))


class Reader:
    """Takes values from the front of some bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def more(self):
        return self.at < len(self.data)

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError("the frame ends within a value")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def short(self):
        return from_bytes(self.take(self.number(">B")))

    def long(self):
        return self.take(self.number(">I"))

    def field(self):
        tag = self.take(1).decode("latin-1")
        if tag in FIXED:
            return tag, self.number(FIXED[tag])
        if tag in FLOATS:
            return tag, self.take(struct.calcsize(FLOATS[tag])).hex()
        if tag == "t":
            return tag, self.number(">B") != 0
        if tag == "D":
            return tag, [self.number(">B"), self.number(">I")]
        if tag in "Sx":
            return tag, from_bytes(self.long())
        if tag == "F":
            return tag, self.table()
        if tag == "A":
            items, found = Reader(self.long()), []
            while items.more():
                found.append(list(items.field()))
            return tag, found
        if tag == "V":
            return tag, None
        raise ValueError(f"there is no field type {tag!r}")

    def table(self):
        rows, found = Reader(self.long()), []
        while rows.more():
            name = rows.take(rows.number(">B"))
            found.append((name, *rows.field()))
        # By name and then as text, so that equal tables are told equally even if a name repeats.
        found.sort(key=lambda row: (row[0], row[1], json.dumps(row[2])))
        return [[from_bytes(name), tag, value] for name, tag, value in found]


def write_properties(properties):
    unknown = set(properties) - {name for name, _, _ in PROPERTIES}
    if unknown:
        raise ValueError(f"there are no properties {sorted(unknown)}")
    flags, data = 0, b""
    for name, kind, bit in PROPERTIES:
        if name not in properties:
            continue
        value = properties[name]
        flags |= 1 << bit
        if kind == "short":
            data += short(value)
        elif kind == "table":
            data += write_table(value)
        else:
            data += struct.pack(">B" if kind == "octet" else ">Q", value)
    return struct.pack(">H", flags) + data


def read_properties(reader):
    flags, found = reader.number(">H"), {}
    for name, kind, bit in PROPERTIES:
        if not flags & (1 << bit):
            continue
        if kind == "short":
            found[name] = reader.short()
        elif kind == "table":
            found[name] = reader.table()
        else:
            found[name] = reader.number(">B" if kind == "octet" else ">Q")
    return found


class Connection:
    """One connection with at most one channel open, in confirm mode."""

    def __init__(self, url):
        parts = urlsplit(url)
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        vhost = unquote(parts.path[1:]) if len(parts.path) > 1 else "/"
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), TIMEOUT_S)
        self.stream = self.socket.makefile("rb")
        self.channel, self.published, self.frame_max = 0, 0, FRAME_MAX
        self.socket.sendall(b"AMQP\x00\x00\x09\x01")
        self.expect(10, 10)
        response = b"\x00" + user.encode() + b"\x00" + password.encode()
        # Else a wrong password is told by closing the socket without a word.
        able = [["capabilities", "F", [["authentication_failure_close", "t", True]]]]
        self.call(0, 10, 11, write_table(able) + short("PLAIN") + long(response) + short("en_US"))
        tune = self.expect(10, 30)
        channels, offered = tune.number(">H"), tune.number(">I")
        self.frame_max = min(FRAME_MAX, offered or FRAME_MAX)
        self.call(0, 10, 31, struct.pack(">HIH", channels, self.frame_max, 0))
        self.call(0, 10, 40, short(vhost) + short("") + b"\x00")
        self.expect(10, 41)

    def open_channel(self):
        self.channel, self.published = self.channel + 1, 0
        self.call(self.channel, 20, 10, short(""))
        self.expect(20, 11)
        self.call(self.channel, 85, 10, b"\x00")
        self.expect(85, 11)

    def close(self):
        self.call(0, 10, 50, struct.pack(">H", 200) + short("done") + struct.pack(">HH", 0, 0))
        self.expect(10, 51)
        self.socket.close()

    def send(self, kind, channel, payload):
        self.socket.sendall(
            struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([FRAME_END])
        )

    def call(self, channel, class_id, method_id, arguments):
        self.send(METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)

    def exactly(self, count):
        data = self.stream.read(count)
        if len(data) < count:
            raise ConnectionError("the broker closed the connection")
        return data

    def frame(self):
        while True:
            kind, channel, size = struct.unpack(">BHI", self.exactly(7))
            payload = self.exactly(size)
            if self.exactly(1)[0] != FRAME_END:
                raise ValueError("a frame does not end with its end mark")
            if kind != HEARTBEAT:
                return kind, channel, payload

    def method(self):
        """Returns the next method: its class and number, and a reader of its arguments."""
        kind, channel, payload = self.frame()
        if kind != METHOD:
            raise ValueError(f"a frame of type {kind} where a method was due")
        reader = Reader(payload)
        name = (reader.number(">H"), reader.number(">H"))
        if name == (10, 50):
            raise ConnectionError(f"{reader.number('>H')} {reader.short()}")
        if name == (20, 40):
            reason = f"{reader.number('>H')} {reader.short()}"
            self.call(channel, 20, 41, b"")
            raise Refused(reason)
        return name, reader

    def expect(self, *wanted):
        name, reader = self.method()
        if name != wanted:
            raise ValueError(f"the broker sent method {name} where {wanted} was due")
        return reader

    def content(self):
        """Returns the properties and body that follow a method."""
        kind, _, payload = self.frame()
        if kind != HEADER:
            raise ValueError("no content header follows")
        reader = Reader(payload)
        reader.take(4)
        size = reader.number(">Q")
        properties = read_properties(reader)
        pieces, got = [], 0
        while got < size:
            kind, _, payload = self.frame()
            if kind != BODY:
                raise ValueError("no body follows")
            pieces.append(payload)
            got += len(payload)
        return properties, b"".join(pieces)

    # Operations

    def declare_queue(self, op):
        bits = (
            op.get("passive", False)
            | op.get("durable", True) << 1
            | op.get("exclusive", False) << 2
            | op.get("auto_delete", False) << 3
        )
        arguments = write_table(op.get("arguments", []))
        self.call(
            self.channel, 50, 10, b"\x00\x00" + short(op["queue"]) + bytes([bits]) + arguments
        )
        ok = self.expect(50, 11)
        return {
            "queue": ok.short(),
            "messages": ok.number(">I"),
            "consumers": ok.number(">I"),
        }

    def delete_queue(self, op):
        self.call(self.channel, 50, 40, b"\x00\x00" + short(op["queue"]) + b"\x00")
        return {"messages": self.expect(50, 41).number(">I")}

    def purge_queue(self, op):
        self.call(self.channel, 50, 30, b"\x00\x00" + short(op["queue"]) + b"\x00")
        return {"messages": self.expect(50, 31).number(">I")}

    def declare_exchange(self, op):
        bits = op.get("passive", False) | op.get("durable", True) << 1
        arguments = write_table(op.get("arguments", []))
        names = short(op["exchange"]) + short(op.get("type", "topic"))
        self.call(self.channel, 40, 10, b"\x00\x00" + names + bytes([bits]) + arguments)
        self.expect(40, 11)
        return {}

    def delete_exchange(self, op):
        self.call(self.channel, 40, 20, b"\x00\x00" + short(op["exchange"]) + b"\x00")
        self.expect(40, 21)
        return {}

    def bind_queue(self, op):
        names = short(op["queue"]) + short(op["exchange"]) + short(op.get("routing_key", ""))
        arguments = write_table(op.get("arguments", []))
        self.call(self.channel, 50, 20, b"\x00\x00" + names + b"\x00" + arguments)
        self.expect(50, 21)
        return {}

    def unbind_queue(self, op):
        names = short(op["queue"]) + short(op["exchange"]) + short(op.get("routing_key", ""))
        arguments = write_table(op.get("arguments", []))
        self.call(self.channel, 50, 50, b"\x00\x00" + names + arguments)
        self.expect(50, 51)
        return {}

    def publish(self, op):
        body = to_bytes(op.get("body", ""))
        names = short(op.get("exchange", "")) + short(op.get("routing_key", ""))
        properties = write_properties(op.get("properties", {}))
        mandatory = b"\x01" if op.get("mandatory", True) else b"\x00"
        self.call(self.channel, 60, 40, b"\x00\x00" + names + mandatory)
        self.send(HEADER, self.channel, struct.pack(">HHQ", 60, 0, len(body)) + properties)
        piece = self.frame_max - 8
        for start in range(0, len(body), piece):
            self.send(BODY, self.channel, body[start : start + piece])
        self.published += 1
        returned = None
        while True:
            name, reader = self.method()
            if name == (60, 50):
                returned = f"{reader.number('>H')} {reader.short()}"
                self.content()
            elif name in ((60, 80), (60, 120)):
                if reader.number(">Q") != self.published:
                    raise ValueError("a confirm is for another message")
                return {"outcome": "ack" if name == (60, 80) else "nack", "returned": returned}
            else:
                raise ValueError(f"the broker sent method {name} where a confirm was due")

    def get(self, op):
        found = []
        while len(found) < op.get("max", 1):
            no_ack = b"\x01" if op.get("ack", True) else b"\x00"
            self.call(self.channel, 60, 70, b"\x00\x00" + short(op["queue"]) + no_ack)
            name, reader = self.method()
            if name == (60, 72):
                break
            if name != (60, 71):
                raise ValueError(f"the broker sent method {name} where a message was due")
            reader.number(">Q")
            message = {"redelivered": reader.number(">B") != 0}
            message["exchange"], message["routing_key"] = reader.short(), reader.short()
            message["properties"], body = self.content()
            if len(body) <= BODY_SHOWN_MAX:
                message["body"] = from_bytes(body)
            message["body_bytes"] = len(body)
            message["body_sha256"] = hashlib.sha256(body).hexdigest()
            found.append(message)
        return {"messages": found}


OPERATIONS = {
    name: getattr(Connection, name)
    for name in (
        "declare_queue",
        "delete_queue",
        "purge_queue",
        "declare_exchange",
        "delete_exchange",
        "bind_queue",
        "unbind_queue",
        "publish",
        "get",
    )
}


def main():
    operations = json.load(sys.stdin)
    connection = Connection(sys.argv[1])
    connection.open_channel()
    results = []
    for op in operations:
        try:
            results.append(OPERATIONS[op["op"]](connection, op))
        except Refused as refused:
            results.append({"error": str(refused)})
            connection.open_channel()
    # What was got without `ack` goes back to its queue here.
    connection.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
