"""Ways to undo or evade the filter of the inet tier from inside the sandbox.

Each function returns a text when the kernel let it have its way; the caller judges by what still
cannot be reached, and by the logs of those that must not be. An OSError is a refusal.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from claudebox.sandbox import libc, netlink, nftables

LAN, LAN6 = "192.168.8.10", "2001:db8:8::10"
INTERNET, INTERNET6 = "203.0.114.10", "2001:db8:ffff::10"
PORT = 7007
TOKEN = b"attack"
_C = ctypes.CDLL(None, use_errno=True)


def _call(name, *arguments):
    result = getattr(_C, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _in_child(action):
    """Run an attack that changes the process in a child: its text, or the OSError it met."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = action() or "done"
        except OSError as error:
            text = f"!{error.errno or 0} {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(pid, 0)
    if text.startswith("!"):
        number, _, words = text[1:].partition(" ")
        raise OSError(int(number), words)
    return text


def _reach(made, address=(LAN, PORT)):
    """Whether an odd socket gets an answer from the LAN."""
    made.settimeout(1)
    made.connect(address)
    made.send(TOKEN)
    made.recv(100)
    return "an answer came from the LAN"


def _nft(*messages):
    connection = netlink.Connection(netlink.NETLINK_NETFILTER)
    connection.request(nftables._in_batch(list(messages)))
    return "the kernel took it"


def delete_every_table():
    return _nft((nftables._kind(2), 4, nftables._header(0)))


def delete_the_table():
    return _nft((nftables._kind(2), 4, nftables._packed((1, b"claudebox\0"))))


def flush_the_rules():
    return _nft((nftables._kind(8), 4, nftables._packed((1, b"claudebox\0"), (2, b"output\0"))))


def flush_a_set():
    return _nft((nftables._kind(14), 4, nftables._packed((1, b"claudebox\0"), (2, b"near4\0"))))


def add_a_table_of_ones_own():
    return _nft((nftables._kind(0), 0x404, nftables._packed((1, b"mine\0"))))


def change_the_table_in_a_user_namespace_of_ones_own():
    def action():
        libc.unshare(libc.CLONE_NEWUSER)
        return delete_the_table()

    return _in_child(action)


def reach_out_of_a_network_namespace_of_ones_own():
    def action():
        libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
        return _reach(socket.socket())

    return _in_child(action)


def enter_the_owner_of_the_network_namespace():
    def action():
        net = os.open("/proc/self/ns/net", os.O_RDONLY)
        owner = fcntl.ioctl(net, 0xB701)  # NS_GET_USERNS
        _call("setns", owner, 0)
        return delete_the_table()

    return _in_child(action)


def enter_the_parent_user_namespace():
    def action():
        user = os.open("/proc/self/ns/user", os.O_RDONLY)
        parent = fcntl.ioctl(user, 0xB702)  # NS_GET_PARENT
        _call("setns", parent, 0)
        return delete_the_table()

    return _in_child(action)


def enter_the_network_of_the_init():
    def action():
        _call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0)
        return _reach(socket.socket())

    return _in_child(action)


def send_frames():
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
    made.bind(("tap0", 0))
    made.send(bytes(60))
    return "a frame left"


def send_raw_ipv4():
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.sendto(bytes(40), (LAN, 0))
    return "a packet left"


def send_raw_ipv6():
    made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.sendto(bytes(60), (LAN6, 0))
    return "a packet left"


def bind_to_the_device():
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, 25, b"tap0\0")
    return _reach(made)


def bind_to_the_device_over_udp():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 25, b"tap0\0")
    return _reach(made)


def bind_to_the_loopback_device():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 25, b"lo\0")
    return _reach(made)


def choose_the_interface_per_packet():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(1)
    info = struct.pack("i4s4s", socket.if_nametoindex("tap0"), bytes(4), bytes(4))
    made.sendmsg([TOKEN], [(socket.IPPROTO_IP, 8, info)], 0, (LAN, PORT))
    made.recv(100)
    return "an answer came from the LAN"


def choose_the_interface_per_packet_for_ipv6():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.settimeout(1)
    info = bytes(16) + struct.pack("I", socket.if_nametoindex("tap0"))
    made.sendmsg([TOKEN], [(socket.IPPROTO_IPV6, 50, info)], 0, (LAN6, PORT))
    made.recv(100)
    return "an answer came from the LAN"


def choose_the_interface_for_unicast():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 50, struct.pack(">I", socket.if_nametoindex("tap0")))
    return _reach(made)


def mark_the_packets():
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, 36, 1)
    return _reach(made)


def send_transparently():
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, 19, 1)
    made.bind(("192.168.8.2", 0))
    return _reach(made)


def bind_to_an_address_of_the_host():
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
    made.bind(("192.168.8.2", 0))
    return _reach(made)


def bind_to_the_loopback_address():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    return _reach(made)


def route_by_the_source():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 131, 7, 4]) + socket.inet_aton(INTERNET))
    return _reach(made)


def route_strictly_by_the_source():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 137, 7, 4]) + socket.inet_aton(INTERNET))
    return _reach(made)


def route_to_the_lan_first():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 4, bytes([1, 131, 7, 4]) + socket.inet_aton(LAN))
    return _reach(made, (INTERNET, PORT))


def route_by_an_ipv6_header():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    header = bytes([0, 2, 0, 1, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, LAN6)
    made.setsockopt(socket.IPPROTO_IPV6, 57, header)
    return _reach(made, (INTERNET6, PORT))


def add_a_hop_by_hop_header():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, 54, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    return _reach(made, (LAN6, PORT))


def add_a_destination_header():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    return _reach(made, (LAN6, PORT))


def use_a_mapped_address():
    return _reach(socket.socket(socket.AF_INET6), ("::ffff:" + LAN, PORT))


def open_fast():
    made = socket.socket()
    made.settimeout(1)
    made.sendto(TOKEN, socket.MSG_FASTOPEN, (LAN, PORT))
    made.recv(100)
    return "an answer came from the LAN"


def use_multipath_tcp():
    return _reach(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))


def use_sctp():
    return _reach(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132))


def use_dccp():
    return _reach(socket.socket(socket.AF_INET, 6, 33))


def use_udplite():
    return _reach(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136))


def use_l2tp():
    return _reach(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 115))


def send_fragments():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, 10, 0)  # no path MTU discovery
    made.settimeout(1)
    made.connect((LAN, PORT))
    made.send(TOKEN * 10000)
    made.recv(100)
    return "an answer came from the LAN"


def broadcast():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.settimeout(1)
    made.sendto(TOKEN, ("192.168.8.255", PORT))
    made.sendto(TOKEN, ("255.255.255.255", PORT))
    made.recv(100)
    return "an answer came from the LAN"


def multicast():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, 17, socket.if_nametoindex("tap0"))
    made.settimeout(1)
    made.sendto(TOKEN, ("ff02::1", PORT))
    made.recv(100)
    return "an answer came from the LAN"


def reconnect_an_open_socket():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(1)
    made.connect((INTERNET, PORT))
    made.connect((LAN, PORT))
    made.send(TOKEN)
    made.recv(100)
    return "an answer came from the LAN"


def take_the_tap():
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
    return "attached to the tap"


def take_the_loopback_down():
    route = netlink.Connection(netlink.NETLINK_ROUTE)
    route.request([(16, 4, struct.pack("=BxHiII", 0, 0, 1, 0, 1))])
    return "the kernel took it"


def add_an_address():
    route = netlink.Connection(netlink.NETLINK_ROUTE)
    netlink.add_address(route, socket.if_nametoindex("tap0"), socket.inet_aton("192.168.8.77"), 24)
    return "the kernel took it"


def add_a_route():
    route = netlink.Connection(netlink.NETLINK_ROUTE)
    netlink.add_default_route(route, socket.if_nametoindex("tap0"), socket.inet_aton("198.18.0.3"))
    return "the kernel took it"


def add_an_interface():
    route = netlink.Connection(netlink.NETLINK_ROUTE)
    kind = netlink.attribute(18, [(1, b"dummy\0")])
    route.request([(16, 0x404, bytes(16) + kind)])
    return "the kernel took it"


def change_interface_flags():
    request = struct.pack("16sH22x", b"tap0", 0)
    fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, request)
    return "the kernel took it"


def write_a_network_switch():
    with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
        switch.write("1")
    return "the kernel took it"


def become_root():
    def action():
        os.setresuid(0, 0, 0)
        return delete_the_table()

    return _in_child(action) if os.getuid() else delete_the_table()


def load_a_program_into_the_kernel():
    instructions = struct.pack("<Q", 0xB7) + struct.pack("<Q", 0x95)
    buffer = ctypes.create_string_buffer(instructions)
    license_ = ctypes.create_string_buffer(b"GPL")
    fields = struct.pack("IIQQ", 8, 2, ctypes.addressof(buffer), ctypes.addressof(license_))
    fields = ctypes.create_string_buffer(fields + bytes(96))
    _call("syscall", 321, 5, fields, 120)
    return "the kernel took it"


def transform_packets():
    made = netlink.Connection(6)  # NETLINK_XFRM
    made.request([(0x10, 4, bytes(224))])
    return "the kernel took it"


def old_style_filter_table():
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    made.setsockopt(socket.IPPROTO_IP, 64, bytes(100))  # IPT_SO_SET_REPLACE
    return "the kernel took it"


def see_processes_outside():
    pids = [int(each) for each in os.listdir("/proc") if each.isdigit()]
    for pid in pids:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"launch.py" in file.read() or b"pasta" in file.read():
                return f"{pid} is the launcher or the sidecar"
    raise OSError("only its own processes are to be seen")


def use_inherited_descriptors():
    for each in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{each}")
        except OSError:
            continue
        if target.startswith("socket:"):
            return f"descriptor {each} is a socket"
    raise OSError("no socket was inherited")


def find_abstract_sockets_of_the_host():
    made = socket.socket(socket.AF_UNIX)
    made.connect("\0claudebox-test-world")
    return "connected"


def run() -> dict:
    """Try them all: {name: "refused: why" or what was achieved}."""
    results = {}
    for name, attack in list(globals().items()):
        if name.startswith("_") or name == "run" or getattr(attack, "__module__", "") != __name__:
            continue
        try:
            results[name] = attack() or "done"
        except (OSError, AttributeError) as error:
            results[name] = f"refused: {error}"
    return results
