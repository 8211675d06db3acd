"""Policy: asks OPA, remembers exact answers, and means Deny whenever there is no answer."""
