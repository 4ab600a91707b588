"""Everything that needs Ray: sessions, training workers, trials, attack workers."""
