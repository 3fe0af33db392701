"""How updates are computed: ``choice`` takes the fastest way that does what the reference does."""
