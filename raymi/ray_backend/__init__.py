"""Ray: sessions, training workers, trials and attack workers."""
