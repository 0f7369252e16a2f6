"""Many runs compared: what metadata adds, and which shortcuts it brings."""
