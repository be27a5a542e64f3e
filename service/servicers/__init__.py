"""What each method does, a room per API, and what the APIs share. No API knows another."""
