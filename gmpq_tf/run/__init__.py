"""What commands share: flags, workdir, stages, locks, devices, training loop, logs."""
