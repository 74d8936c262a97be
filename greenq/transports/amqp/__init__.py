"""RabbitMQ over py-amqp: its own reader for deliveries, its own writer for publishes and settlements."""
