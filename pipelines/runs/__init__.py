"""What is written beside each output: its identity, its ledger, the command, the failure, the machine."""
