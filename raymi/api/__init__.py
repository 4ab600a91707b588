"""Public functions and classes of the package; `raymi` imports them on first use."""
