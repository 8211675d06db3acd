"""The Model Context Protocol (2025-06-18): JSON-RPC in HTTP, streamable or with SSE beside."""
