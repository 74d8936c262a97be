"""What the suites share: private servers, real workers, the ledger of what ran."""
