"""moto's S3 server, one PUT at a time: it looks whether an object exists and then writes, and another may come between.

python -m tests.servers.moto_server -H 127.0.0.1 -p PORT
"""

from __future__ import annotations

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_put_object = S3Response.put_object
_turn = threading.Lock()


def put_object(self: Any) -> Any:
    with _turn:
        return _put_object(self)


if __name__ == "__main__":
    S3Response.put_object = put_object
    main()
