"""The shop of tests.interop.shop as an app of greenq; broker and results come from the environment."""

from __future__ import annotations

import json
import os

from greenq import GreenQ, exceptions
from tests.interop.shop import define

app = GreenQ("shop")
app.conf.update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))
define(app, exceptions)
