"""The gateway that stands between an AI agent and everything outside its pod."""
