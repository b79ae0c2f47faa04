"""What every command shares: flags, help, exit codes, progress, signals, errors."""
