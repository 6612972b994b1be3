"""The same questions asked of pika, a client that others wrote: a witness for the witness.

    pika_client.py URL QUEUE publish < MESSAGES.json      each {"properties": {…}, "body": "…"}
    pika_client.py URL QUEUE get                          [{"properties": {…}, "body": "…"}…]

pika cannot encode every type of AMQP nor tell all of them apart, so headers are told as pika
understands them: {name: [Python's type, text]}. `raw_amqp.py` is the one that says what is on
the wire.
"""

import datetime
import json
import sys

import pika

PROPERTIES = (
    "content_type content_encoding delivery_mode priority correlation_id reply_to expiration "
    "message_id timestamp type user_id app_id cluster_id"
).split()


def tell(value):
    if isinstance(value, dict):
        return ["dict", {name: tell(item) for name, item in sorted(value.items())}]
    if isinstance(value, list):
        return ["list", [tell(item) for item in value]]
    if isinstance(value, datetime.datetime):
        utc = value.replace(tzinfo=value.tzinfo or datetime.timezone.utc)
        return ["timestamp", str(int(utc.timestamp()))]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return [type(value).__name__, str(value)]


def main():
    url, queue, command = sys.argv[1:4]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    if command == "publish":
        channel.confirm_delivery()
        messages = json.load(sys.stdin)
        for message in messages:
            properties = pika.BasicProperties(**message["properties"])
            channel.basic_publish("", queue, message["body"].encode(), properties, mandatory=True)
        json.dump({"published": len(messages)}, sys.stdout)
    elif command == "get":
        found = []
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                break
            told = {name: getattr(properties, name) for name in PROPERTIES}
            told = {name: value for name, value in told.items() if value is not None}
            if properties.headers is not None:
                told["headers"] = tell(properties.headers)[1]
            found.append(
                {"routing_key": method.routing_key, "properties": told, "body": body.decode()}
            )
        json.dump(found, sys.stdout)
    else:
        sys.exit(f"there is no command {command!r}")
    connection.close()


if __name__ == "__main__":
    main()
