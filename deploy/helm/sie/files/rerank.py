"""Check an installation: the server is ready, refuses calls without a key, and ranks texts with one.

Reads URL, KEYS (required or none) and, optionally, KEY and MODEL. Without KEY the ranking is checked only if keys are
not required. Without MODEL the server chooses its first model.
"""

import json
import os
import time
import urllib.error
import urllib.request

url, keys, key = os.environ["URL"], os.environ["KEYS"], os.environ.get("KEY", "")
texts = ["The sky is blue.", "Paris is the capital of France."]


def call(path, body=None, headers=None):
    """Return the status and the body of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data, {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:  # the name or the port does not exist yet
        return 0, str(error).encode()


def expect(what, wanted, got):
    if got[0] != wanted:
        raise SystemExit(f"{what}: expected status {wanted}, got {got[0]}: {got[1][:500]!r}")
    print(f"{what}: {wanted}")


for _ in range(30):
    ready = call("/readyz")
    if ready[0] == 200:
        break
    time.sleep(2)
expect("/readyz", 200, ready)

question = {"query": "What is the capital of France?", "documents": texts}
if os.environ.get("MODEL"):
    question["model"] = os.environ["MODEL"]
if keys == "required":
    expect("/v1/rerank without a key", 401, call("/v1/rerank", question))
if key or keys == "none":
    answer = call("/v1/rerank", question, {"Authorization": f"Bearer {key}"} if key else {})
    expect("/v1/rerank", 200, answer)
    first = json.loads(answer[1])["results"][0]["index"]
    if first != 1:
        raise SystemExit(f"the wrong text ranks first: {answer[1][:500]!r}")
    print("the right text ranks first")
else:
    print("no tests.keySecret: ranking was not checked")
