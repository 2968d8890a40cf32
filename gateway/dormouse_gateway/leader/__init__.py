"""The gateway's stream to whoever leads: demand, and whom it cannot reach."""
