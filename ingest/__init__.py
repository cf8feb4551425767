"""The edges: serial, MQTT and files in; the durable store; the Parquet lake; the command line."""
