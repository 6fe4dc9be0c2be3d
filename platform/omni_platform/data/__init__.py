"""From a manifest to rows that a trainer reads; what cannot be used is quarantined, never lost."""
