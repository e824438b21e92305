"""The engine, which runs whole networks on the CPU in compiled code; `gkp.engine.compile` has its public function."""
