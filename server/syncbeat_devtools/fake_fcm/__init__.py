"""A fake of FCM HTTP v1 and of Google's OAuth token endpoint, over real sockets."""

from syncbeat_devtools.fake_fcm.fake import FakeFcm, FakeFcmStats
from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.ledger import AcceptedMessage, DeviceView, Effect
from syncbeat_devtools.fake_fcm.message.parser import Message, TargetKind
from syncbeat_devtools.fake_fcm.server import running_fake_fcm, serve
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings

__all__ = [
    "AcceptedMessage",
    "DeviceView",
    "Effect",
    "FakeFcm",
    "FakeFcmSettings",
    "FakeFcmStats",
    "Fault",
    "FaultKind",
    "Message",
    "TargetKind",
    "running_fake_fcm",
    "serve",
]
