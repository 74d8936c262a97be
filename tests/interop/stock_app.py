"""The shop of tests.interop.shop as an app of Celery; broker and results come from the environment."""

from __future__ import annotations

import json
import os

from celery import Celery, exceptions

from tests.interop.shop import define

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BACKEND"])
app.conf.update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))
define(app, exceptions)
