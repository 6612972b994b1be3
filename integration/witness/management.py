"""Asks RabbitMQ's management plugin, with nothing but Python's own library.

    management.py http://user:password@host:port < requests.json > answers.json

Requests are a list of [method, path below /api/, body or null]; answers a list of what each
returned, or null. The first that is refused ends it.
"""

import base64
import json
import sys
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

TIMEOUT_S = 30


def main():
    url = urlsplit(sys.argv[1])
    login = f"{unquote(url.username)}:{unquote(url.password)}".encode()
    headers = {
        "Authorization": "Basic " + base64.b64encode(login).decode(),
        "Content-Type": "application/json",
    }
    base = f"{url.scheme}://{url.hostname}:{url.port}{url.path.rstrip('/')}/api/"
    # The machine's own settings for proxies are not for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answers = []
    for method, path, body in json.load(sys.stdin):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(base + path, data, headers, method=method)
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")
        answers.append(json.loads(text) if text else None)
    json.dump(answers, sys.stdout)


main()
