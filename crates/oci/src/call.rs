//! One request to a repository, and the one way to ask whether it may be done.

use std::sync::Arc;

use larder_auth::{Decision, decide};
use larder_core::grant::{Action, Principal};
use larder_http::{AccessNote, Request};

use crate::{
    ID,
    error::{Code, Refusal},
    token::Gate,
};

/// One request to a repository.
pub(crate) struct Call<'a> {
    pub(crate) request: &'a mut Request,
    pub(crate) asker: &'a Arc<Principal>,
    pub(crate) access: &'a mut AccessNote,
    pub(crate) name: &'a str,
    /// The path by which answers are remembered: it says what is asked for, in the names that are used here.
    pub(crate) path: &'a str,
    pub(crate) gate: &'a Gate,
}

impl Call<'_> {
    /// Asks the one place that decides, and notes what was wanted.
    pub(crate) fn demand(&mut self, action: Action) -> Result<(), Refusal> {
        self.access.action = Some(action);
        self.access.package = Some(self.name.into());
        match decide(self.asker, action, ID, self.name) {
            Decision::Allow => Ok(()),
            Decision::Unauthenticated => Err(self.gate.who_are_you(self.request, Some((self.name, action)))),
            _ if self.asker.limited => Err(self.gate.ask_for_more(self.request, self.name, action)),
            _ if action == Action::Read => Err(Refusal::no_repository(self.name)),
            _ => Err(Refusal::new(
                Code::Denied,
                format!("{} may not {} `{}`", self.asker.name, action.as_str(), self.name),
                format!("`larder grant add {} {}:{ID}:{}` allows it", self.asker.name, action.as_str(), self.name),
            )),
        }
    }

    /// The path by which answers are remembered.
    pub(crate) fn path(&self) -> String {
        self.path.to_owned()
    }
}
