"""HTTP/1.1, HTTP/2 and TLS of the fake FCM."""
