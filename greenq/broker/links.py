"""Which link and which sender serve a broker URL that has no batched store."""

from __future__ import annotations

from greenq.broker.connections import connect
from greenq.config import Settings
from greenq.transports.amqp.connection import is_amqp
from greenq.transports.amqp.link import AmqpLink
from greenq.transports.amqp.sender import AmqpSender
from greenq.transports.generic import GenericLink, GenericSender
from greenq.transports.link import Link, LinkOptions, Sender


def open_link(url: str, conf: Settings, name: str) -> Link:
    """Connect for consuming; `name` is what the broker's lists show. Raises BrokerUnreachable."""
    if is_amqp(url):
        return AmqpLink(url, _options(conf, name))
    return GenericLink(connect(url, conf))


def open_sender(url: str, conf: Settings, name: str) -> Sender:
    """Connect for publishing. Raises BrokerUnreachable."""
    if is_amqp(url):
        return AmqpSender(url, _options(conf, name))
    return GenericSender(connect(url, conf))


def _options(conf: Settings, name: str) -> LinkOptions:
    return LinkOptions(
        heartbeat=conf.broker_heartbeat or 0,
        connect_timeout=conf.broker_connection_timeout,
        ssl=conf.broker_use_ssl,
        login_method=conf.broker_login_method,
        transport_options=conf.broker_transport_options,
        name=name,
    )
