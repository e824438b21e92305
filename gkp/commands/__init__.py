"""The commands of `gkp`, by what they are about. Each module declares its own; heavy imports wait until one is run."""
