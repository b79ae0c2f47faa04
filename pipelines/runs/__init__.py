"""Files written beside each output: identity, ledger, command, failure, machine; and locks."""
