"""The engine: whole networks on the CPU, in compiled code; `gkp.engine.compile` is its entrance."""
