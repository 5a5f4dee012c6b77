# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch as the peer: an Ethernet switch with a Geneve port that shares no code with us.

Its two daemons run in a namespace of the caller's, with a directory, sockets and
a database of their own, and end with the caller, whatever becomes of it; no
service of the machine is started or asked. `script/bootstrap test` puts the
programs into `.venv/openvswitch`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from geneve_ebpf.host import links, namespaces
from lab.network import inside, run
from tests.nodes import PREFIX, Bed, Host, eventually, keep_neighbours

PROGRAMS = Path(sys.prefix, "openvswitch")
SWITCH, PHYSICAL, TUNNEL, HOST = "br-int", "br-phy", "tunnel0", "host0"


class OpenvSwitch:
    """One Open vSwitch with a Geneve port and a host of its own behind it.

    netns: where it lives, with the interface that leads to the other VTEP in it.
    datapath: "netdev" forwards in its own process, so that the kernel needs to know
    neither Geneve nor Open vSwitch; "system" in the kernel, by its modules, which
    must be loaded.
    """

    def __init__(self, bed: Bed, netns: Path, datapath: str = "netdev") -> None:
        self.bed = bed
        self.netns = netns
        self.datapath = datapath
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-ovs-", dir="/run"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        # What it was told last, so as not to tell it again: each word is a process.
        self._tunnel: dict[str, object] = {}
        self._flows: tuple[int, dict[str, str], str] | None = None
        self._has_options = False

    def __enter__(self) -> OpenvSwitch:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- its life

    def _start(self) -> None:
        database, door = self.directory / "conf.db", f"unix:{self.directory}/db.sock"
        self._run("ovsdb-tool", "create", database, PROGRAMS / "vswitch.ovsschema")
        self._daemon("ovsdb-server", database, f"--remote=p{door}")
        self._await("db.sock")
        self.vsctl("--no-wait", "init")
        self._daemon(
            "ovs-vswitchd", door, *(["--disable-system"] if self.datapath == "netdev" else [])
        )
        self._await("ovs-vswitchd.ctl")
        self.vsctl(
            *("--may-exist", "add-br", SWITCH),
            *("--", "set", "bridge", SWITCH, f"datapath_type={self.datapath}", "fail_mode=secure"),
        )

    def close(self) -> None:
        """End the daemons, the last one first, and remove their files."""
        while self._daemons:
            daemon = self._daemons.pop()
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _daemon(self, program: str, *words: object) -> None:
        # Should this process be killed, they are too.
        command = ["setpriv", "--pdeathsig", "KILL", *inside(self.netns, PROGRAMS / program)]
        command += [str(word) for word in words]
        command += [f"--unixctl={self.directory}/{program}.ctl", "-vsyslog:off", "-vconsole:info"]
        with (self.directory / f"{program}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self._environment,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def _await(self, name: str) -> None:
        def there() -> bool:
            return (self.directory / name).exists() or self._daemons[-1].poll() is not None

        if not eventually(there, 30) or self._daemons[-1].poll() is not None:
            raise RuntimeError(f"no {name}:\n{self.log()}")

    def log(self, lines: int = 25) -> str:
        """What both daemons said last."""
        return "\n".join(
            line
            for path in sorted(self.directory.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()[-lines:]
        )

    @property
    def _environment(self) -> dict[str, str]:
        names = ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")
        return {**os.environ, **{f"OVS_{name}": str(self.directory) for name in names}}

    @property
    def version(self) -> str:
        """As it says itself."""
        match = re.search(r"[0-9.]+$", self._run("ovs-vsctl", "--version").splitlines()[0])
        assert match
        return match[0]

    # -- asking it

    def _run(self, program: str, *words: object) -> str:
        done = subprocess.run(
            inside(self.netns, PROGRAMS / program, *words),
            env=self._environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = done.stderr.strip() or done.returncode
            raise RuntimeError(f"{program} {' '.join(map(str, words))}: {said}\n{self.log()}")
        return done.stdout

    def vsctl(self, *words: object) -> str:
        """Read or change its configuration."""
        return self._run("ovs-vsctl", f"--db=unix:{self.directory}/db.sock", "--timeout=30", *words)

    def ofctl(self, command: str, *words: object) -> str:
        """Read or change the flows of the switch, in OpenFlow 1.3's terms."""
        if command.endswith("-flow") or command == "del-flows":
            self._flows = None
        return self._run("ovs-ofctl", "-O", "OpenFlow13", command, SWITCH, *words)

    def appctl(self, *words: object) -> str:
        """Ask the forwarding daemon itself."""
        return self._run("ovs-appctl", "-t", self.directory / "ovs-vswitchd.ctl", *words)

    # -- furnishing

    def underlay(self, interface: str, *addresses: str) -> None:
        """Give it outer addresses, with their lengths, on the interface to the other VTEP.

        The userspace datapath takes its interfaces over, so there the addresses belong
        to a bridge of its own. The host's stack still sees the interface's frames and
        must not answer them a second time: no IPv6 on it, and strict rp_filter.
        """
        holder = interface
        if self.datapath == "netdev":
            holder = PHYSICAL
            self.vsctl(
                *("add-br", PHYSICAL, "--", "set", "bridge", PHYSICAL, "datapath_type=netdev"),
                *("--", "add-port", PHYSICAL, interface),
            )
        self._furnish(holder, addresses)
        # It copies the kernel's routes, when they change.
        if self.datapath == "netdev" and not eventually(
            lambda: f"dev {PHYSICAL}" in self.appctl("ovs/route/show")
        ):
            raise RuntimeError(f"no route by {PHYSICAL}:\n{self.log()}")

    def tunnel(self, remote: str, **options: object) -> None:
        """The Geneve port to another VTEP. options: as its manual has them; values may be true."""
        settings = {"remote_ip": remote, "key": "flow", **options}
        if settings == self._tunnel:
            return
        words = [f"options:{name}={_word(value)}" for name, value in settings.items()]
        self.vsctl(
            *("--if-exists", "del-port", TUNNEL, "--", "add-port", SWITCH, TUNNEL),
            *("--", "set", "interface", TUNNEL, "type=geneve", *words),
        )
        self.forget()
        error = self.vsctl("get", "interface", TUNNEL, "error").strip()
        if error != "[]":
            raise RuntimeError(f"{TUNNEL}: {error}\n{self.log()}")
        self._tunnel = settings

    def host(self, mac: str, *addresses: str, mtu: int = 1450) -> Host:
        """The host behind the switch: an interface of the namespace, on the VPC as on a LAN.

        addresses: one or two, with their lengths.
        """
        self.vsctl(
            *("add-port", SWITCH, HOST, "--", "set", "interface", HOST, "type=internal"),
            *(f"mtu_request={mtu}", f'mac="{mac}"'),
        )
        self._furnish(HOST, addresses)
        return Host(self.bed, self.netns, HOST, *(one.partition("/")[0] for one in addresses))

    def _furnish(self, interface: str, addresses: Sequence[str]) -> None:
        """Addresses, and up. With one of IPv6 it speaks that when spoken to, without not at all."""
        with namespaces.entering(self.netns):
            if any(":" in address for address in addresses):
                for name in ("accept_dad", "router_solicitations", "disable_ipv6"):
                    Path(f"/proc/sys/net/ipv6/conf/{interface}/{name}").write_text("0")
            else:
                links.disable_ipv6(interface)
            keep_neighbours(interface)
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            self._in("ip", "address", "add", address, "dev", interface, *nodad)
        self._in("ip", "link", "set", interface, "up")

    def _in(self, *words: object) -> str:
        return run(*inside(self.netns, *words))

    def flows(self, vni: int, set_options: Mapping[str, str] | None = None, more: str = "") -> None:
        """Join host and tunnel in one VNI.

        set_options: names of fields that `option` gave, and their values; each becomes
        an option of every packet into the tunnel. more: actions before the output.
        """
        wanted = (vni, dict(set_options or {}), more)
        if wanted == self._flows:
            return
        actions = "".join(f"set_field:{v}->{n}," for n, v in (set_options or {}).items()) + more
        self.ofctl("del-flows")
        for flow in (
            f"in_port={HOST} actions=set_field:{vni}->tun_id,{actions}output:{TUNNEL}",
            f"in_port={TUNNEL},tun_id={vni} actions=output:{HOST}",
            # Which groups the host has joined is not the VPC's matter.
            f"priority=40000,in_port={HOST},icmp6,icmp_type=143 actions=drop",
        ):
            self.ofctl("add-flow", flow)
        self._flows = wanted
        self.forget()

    def forget(self) -> None:
        """Let the datapath decide anew about every packet: it would a little later by itself."""
        self.appctl("revalidator/purge")

    def option(self, number: int, option_class: int, kind: int, length: int) -> str:
        """Let flows use one Geneve option; the field's name. A number serves once until cleared."""
        field = f"tun_metadata{number}"
        self._has_options = True
        self.ofctl(
            "add-tlv-map", f"{{class={option_class:#x},type={kind:#x},len={length}}}->{field}"
        )
        return field

    def clear_options(self) -> None:
        """Forget them, and the flows, which may use them: for a moment also after they went."""
        if not self._has_options:
            return
        self.ofctl("del-flows")

        def forgotten() -> bool:
            try:
                self.ofctl("del-tlv-map")
            except RuntimeError as error:
                if "INVALID_TLV_DEL" not in str(error):
                    raise
                return False
            return True

        if not eventually(forgotten):
            raise RuntimeError(f"options are still in use:\n{self.log()}")
        self._has_options = False

    # -- looking

    def packets(self, match: str) -> int:
        """How many packets passed the flow that is written like this, before " actions=".

        The figures of the datapath reach the flows about once a second, and when it forgets.
        """
        self.forget()
        text = self.ofctl("dump-flows", match)
        return sum(int(count) for count in re.findall(r"n_packets=(\d+)", text))

    def statistics(self, interface: str) -> dict[str, int]:
        """An interface's counters."""
        text = self.vsctl("get", "interface", interface, "statistics")
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text)}

    def datapath_flows(self) -> list[str]:
        """What the datapath forwards at the moment, with all it saw of the tunnel."""
        return self.appctl("dpctl/dump-flows", "-m").splitlines()


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # A colon in a value, as IPv6 addresses have, would need quoting in its database's terms.
    return f'"{value}"' if ":" in str(value) else str(value)
