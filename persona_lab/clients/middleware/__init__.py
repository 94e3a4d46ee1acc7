"""Client middleware: wrappers that add retry, circuit breaker, rate limit and cache."""
