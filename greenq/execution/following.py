"""What comes next: the messages a finished task makes, published in one batch with its ack."""

from __future__ import annotations

import logging
from typing import Any

from greenq.app.base import GreenQ
from greenq.app.publishing import message_from_signature
from greenq.context import TaskContext
from greenq.model import TaskMessage

logger = logging.getLogger(__name__)


def after_success(app: GreenQ, context: TaskContext, value: Any) -> list[TaskMessage]:
    """The callbacks with the value in front of their arguments, and the next step of a chain."""
    messages = [
        message_from_signature(app, signature, (value,), context=context)
        for signature in context.embed.get("callbacks") or ()
    ]
    chain = context.embed.get("chain")
    if chain:
        # The chain stands in reverse: its last element runs next and takes the rest along (wire.md 5.3).
        messages.append(
            message_from_signature(app, chain[-1], (value,), context=context, chain=list(chain[:-1]))
        )
    return messages


def after_failure(app: GreenQ, context: TaskContext) -> list[TaskMessage]:
    """The errbacks, each with the id of the task that failed."""
    messages = []
    for signature in context.embed.get("errbacks") or ():
        try:
            messages.append(message_from_signature(app, signature, (context.id,), context=context))
        except Exception:
            logger.exception("An errback of %s cannot be sent.", context.id)
    return messages
