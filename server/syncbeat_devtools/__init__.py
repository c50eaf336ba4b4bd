"""Development tools that ship with the service: embedded stores, a fake FCM, a demo and a simulator."""
