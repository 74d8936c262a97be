"""Brokers as kombu transport plug-ins, and the batched stores behind them. Never knows what a task is."""
