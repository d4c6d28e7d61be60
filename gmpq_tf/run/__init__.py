"""How a command lives: flags, workdir, stages, locks, devices, training loop, logs."""
