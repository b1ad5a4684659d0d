//! What the loop waits for, and whom it tells when it comes.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::agents::{Sign, Which};
use super::guest::{Guest, Pipe};
use super::inquiry::Inquiry;
use super::lifecycle::End;
use super::{Message, Outcome, Supervisor};
use crate::clock;
use crate::power;
use crate::remote::{CallerId, Said, Server};
use crate::snapshots::Process;

/// What can wake the loop.
#[derive(Debug, Clone, Copy)]
pub(super) enum Token {
    Signal,
    Mail,
    Button(usize),
    HeadInput(usize),
    HeadOutput(usize),
    Guest(usize, Pipe),
    /// A port that a guest calls.
    Agent(usize, Which, Sign),
    Shell,
    /// The store's service.
    Store,
    /// Somebody calls.
    Call,
    /// Somebody who has called.
    Caller(CallerId),
}

impl Supervisor {
    /// Waits until something can be done without blocking.
    pub(super) fn wait(&self) -> Vec<Token> {
        let now = clock::now();
        let mut waiting: Vec<(Token, BorrowedFd<'_>, bool)> = vec![
            (Token::Signal, self.signals.as_fd(), false),
            (Token::Mail, self.mailbox.bell.as_fd(), false),
        ];
        for (index, button) in self.settings.buttons.iter().enumerate() {
            waiting.push((Token::Button(index), button.as_fd(), false));
        }
        for (index, head) in self.console.heads().iter().enumerate() {
            waiting.extend(head.input().map(|fd| (Token::HeadInput(index), fd, false)));
            waiting.extend(
                head.blocked_output()
                    .map(|fd| (Token::HeadOutput(index), fd, true)),
            );
        }
        for (index, guest) in self.guests.iter().enumerate() {
            let pipes = guest.pipes();
            waiting.extend(pipes.map(|(pipe, fd, write)| (Token::Guest(index, pipe), fd, write)));
            let signs = guest.agent.waits(now);
            waiting.extend(
                signs.map(|(which, sign, fd)| (Token::Agent(index, which, sign), fd, false)),
            );
        }
        waiting.extend(
            self.shell
                .as_ref()
                .map(|shell| (Token::Shell, shell.fd(), false)),
        );

        let store = self.keeping.process().into_iter();
        let store = store.flat_map(Process::waits);
        waiting.extend(store.map(|(fd, write)| (Token::Store, fd, write)));
        for (caller, fd, write) in self.server.iter().flat_map(Server::waits) {
            let token = caller.map_or(Token::Call, Token::Caller);
            waiting.push((token, fd, write));
        }

        let mut fds: Vec<_> = waiting
            .iter()
            .map(|(_, fd, write)| {
                PollFd::new(
                    *fd,
                    if *write {
                        PollFlags::POLLOUT
                    } else {
                        PollFlags::POLLIN
                    },
                )
            })
            .collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) => fds
                .iter()
                .zip(&waiting)
                .filter(|(fd, _)| fd.any() == Some(true))
                .map(|(_, (token, ..))| *token)
                .collect(),
            // Interrupted, or out of memory for a moment: look again.
            Err(_) => Vec::new(),
        }
    }

    fn timeout(&self) -> PollTimeout {
        let guests = self.guests.iter().filter_map(Guest::due);
        let inquiries = self.inquiries.iter().map(Inquiry::until);
        let pictures = self.pictures_due();
        let Some(due) = guests.chain(inquiries).chain(pictures).min() else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that the loop does not spin through the last millisecond.
        let left = due
            .saturating_sub(clock::now())
            .as_millis()
            .saturating_add(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    pub(super) fn handle(&mut self, token: Token) {
        match token {
            Token::Signal => self.read_signals(),
            Token::Mail => {
                let _ = self.mailbox.bell.read();
                while let Ok(message) = self.mail.try_recv() {
                    match message {
                        Message::Loaded(loaded) => self.install(*loaded),
                        Message::Prepared {
                            guest,
                            preparation,
                            result,
                        } => self.prepared(guest, preparation, result),
                        Message::Network(news) => self.network(news),
                        Message::Store(place) => self.store_found(place),
                        Message::Own {
                            guest,
                            preparation,
                            opened,
                            result,
                        } => self.own_read(guest, preparation, *opened, result),
                    }
                }
            }
            Token::Button(index) => match self.settings.buttons.get(index).map(power::pressed) {
                Some(Ok(true)) => {
                    self.console.say("host: power button");
                    self.go_down(Outcome::PowerOff);
                }
                // Unplugged. The indices of the others in this round shift: they are found again in the next.
                Some(Err(_)) => drop(self.settings.buttons.remove(index)),
                Some(Ok(false)) | None => {}
            },
            Token::HeadInput(index) => {
                let Some(head) = self.console.head_mut(index) else {
                    return;
                };
                let keys = head.read();
                for request in self.console.keys(index, &keys) {
                    self.request(request);
                }
            }
            Token::HeadOutput(index) => {
                if let Some(head) = self.console.head_mut(index) {
                    head.flush();
                }
            }
            Token::Guest(index, pipe) => self.guest_pipe(index, pipe),
            Token::Agent(index, which, sign) => self.agent_sign(index, which, sign),
            Token::Call => {
                if let Some(server) = &mut self.server {
                    server.accept();
                }
            }
            Token::Caller(caller) => {
                let server = self.server.as_mut();
                let said = server.map(|server| server.serve(caller));
                for said in said.into_iter().flatten() {
                    match said {
                        Said::Asked(command) => self.remote(caller, command),
                        Said::Keys { channel, bytes } => self.remote_keys(caller, channel, &bytes),
                    }
                }
            }
            Token::Store => self.store_speaks(),
            Token::Shell => {
                let Some(shell) = &mut self.shell else { return };
                let channel = self.console.shell_channel();
                match shell.read() {
                    Some(bytes) => self.console.output(channel, &bytes),
                    None => self.shell = None,
                }
            }
        }
    }

    fn guest_pipe(&mut self, index: usize, pipe: Pipe) {
        let guest = &mut self.guests[index];
        match pipe {
            Pipe::Output => drop(self.guest_output(index)),
            Pipe::Log => drop(guest.read_log()),
            Pipe::Input => {
                if let Some(vm) = guest.vm() {
                    vm.write_input();
                }
            }
            Pipe::Control => {
                for event in guest.read_control() {
                    self.event(index, &event);
                }
            }
        }
    }

    /// Takes in what a guest prints; false if there was nothing.
    pub(super) fn guest_output(&mut self, index: usize) -> bool {
        let guest = &mut self.guests[index];
        let output = guest.read_output();
        let channel = guest.channel;
        self.console.output(channel, &output.bytes);
        if let Some(server) = &mut self.server {
            server.output(channel, &output.bytes);
        }
        if output.ready {
            self.became_ready(index);
        }
        if output.beats {
            self.guests[index].healing.heard(clock::now());
        }
        if output.fallen {
            self.fell(index, "it printed that it has fallen");
        }
        !output.bytes.is_empty()
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|n| Signal::try_from(n).ok());
            match signal {
                Some(Signal::SIGCHLD) => self.reap(),
                // Ctrl-Alt-Del, when we are process 1.
                Some(Signal::SIGINT) if self.settings.is_init => {
                    self.console.say("host: Ctrl-Alt-Del");
                    self.go_down(Outcome::Reboot);
                }
                Some(_) => self.go_down(Outcome::PowerOff),
                None => {}
            }
        }
    }

    /// Takes in every child that ended; as process 1, the orphans of others too.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let (Some(pid), Some(end)) = (status.pid(), End::from_status(status)) else {
                continue;
            };
            let index = self
                .guests
                .iter_mut()
                .position(|guest| guest.vm().is_some_and(|vm| vm.pid() == pid));
            if let Some(index) = index {
                self.ended(index, end);
            } else if (self.keeping.process()).is_some_and(|process| process.pid() == pid) {
                self.store_ended(end);
            } else if self.shell.as_ref().is_some_and(|shell| shell.pid() == pid) {
                self.shell = None;
                let channel = self.console.shell_channel();
                self.console
                    .output(channel, b"\r\n(the shell ended; Ctrl-] 0 for the host)\r\n");
            }
        }
    }
}
