"""Engines: the plain one-process twin and DeepSpeed; both speak `cclm.engine.protocol.Engine`."""
