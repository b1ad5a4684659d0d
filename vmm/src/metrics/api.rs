//! What the API counts. Whoever answers a request counts it here, by its kind.

use api::Request;
use devices::metrics::{Counter, Gauge, Metrics};

devices::metrics! {
    /// The API itself.
    pub struct ApiServerMetrics {
        /// From the request to start the process to its answering, in microseconds.
        process_startup_time_us: Gauge,
        /// CPU time until then, in microseconds, the parent's included.
        process_startup_time_cpu_us: Gauge,
        /// Answers that could not be sent.
        sync_response_fails: Counter,
        /// Requests that the VMM did not take in time.
        sync_vmm_send_timeout_count: Counter,
    }
}

devices::metrics! {
    /// What is asked for that will go.
    pub struct DeprecatedMetrics {
        /// Requests.
        deprecated_http_api_calls: Counter,
        /// Arguments on the command line.
        deprecated_cmd_line_api_calls: Counter,
    }
}

devices::metrics! {
    /// GET requests.
    pub struct GetMetrics {
        /// `/`.
        instance_info_count: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/mmds`.
        mmds_count: Counter,
        /// `/version`.
        vmm_version_count: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: those of all that failed.
        fails: Counter,
    }
}

devices::metrics! {
    /// PUT requests, and those of them that failed.
    pub struct PutMetrics {
        /// `/actions`.
        actions_count: Counter,
        /// `/actions`, failed.
        actions_fails: Counter,
        /// `/boot-source`.
        boot_source_count: Counter,
        /// `/boot-source`, failed.
        boot_source_fails: Counter,
        /// `/drives/{id}`.
        drive_count: Counter,
        /// `/drives/{id}`, failed.
        drive_fails: Counter,
        /// `/logger`.
        logger_count: Counter,
        /// `/logger`, failed.
        logger_fails: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/machine-config`, failed.
        machine_cfg_fails: Counter,
        /// `/cpu-config`.
        cpu_cfg_count: Counter,
        /// `/cpu-config`, failed.
        cpu_cfg_fails: Counter,
        /// `/metrics`.
        metrics_count: Counter,
        /// `/metrics`, failed.
        metrics_fails: Counter,
        /// `/network-interfaces/{id}`.
        network_count: Counter,
        /// `/network-interfaces/{id}`, failed.
        network_fails: Counter,
        /// `/mmds` and `/mmds/config`.
        mmds_count: Counter,
        /// `/mmds` and `/mmds/config`, failed.
        mmds_fails: Counter,
        /// `/vsock`.
        vsock_count: Counter,
        /// `/vsock`, failed.
        vsock_fails: Counter,
        /// `/pmem/{id}`.
        pmem_count: Counter,
        /// `/pmem/{id}`, failed.
        pmem_fails: Counter,
        /// `/serial`.
        serial_count: Counter,
        /// `/serial`, failed.
        serial_fails: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: all others, failed.
        other_fails: Counter,
    }
}

devices::metrics! {
    /// PATCH requests, and those of them that failed.
    pub struct PatchMetrics {
        /// `/drives/{id}`.
        drive_count: Counter,
        /// `/drives/{id}`, failed.
        drive_fails: Counter,
        /// `/network-interfaces/{id}`.
        network_count: Counter,
        /// `/network-interfaces/{id}`, failed.
        network_fails: Counter,
        /// `/machine-config`.
        machine_cfg_count: Counter,
        /// `/machine-config`, failed.
        machine_cfg_fails: Counter,
        /// `/mmds`.
        mmds_count: Counter,
        /// `/mmds`, failed.
        mmds_fails: Counter,
        /// Ours: all others.
        other_count: Counter,
        /// Ours: all others, failed.
        other_fails: Counter,
    }
}

devices::metrics! {
    /// DELETE requests: ours.
    pub struct DeleteMetrics {
        /// All.
        count: Counter,
        /// Those that failed.
        fails: Counter,
    }
}

/// Everything about the API.
#[derive(Debug, Default)]
pub struct ApiMetrics {
    /// The API itself.
    pub server: ApiServerMetrics,
    /// What will go.
    pub deprecated: DeprecatedMetrics,
    /// GET requests.
    pub get: GetMetrics,
    /// PUT requests.
    pub put: PutMetrics,
    /// PATCH requests.
    pub patch: PatchMetrics,
    /// DELETE requests.
    pub delete: DeleteMetrics,
}

/// What counts a request, and its failure.
#[derive(Clone, Copy, Debug)]
pub struct RequestCounters<'a> {
    count: &'a Counter,
    fails: &'a Counter,
}

impl RequestCounters<'_> {
    /// The request is answered.
    pub fn count(self, succeeded: bool) {
        self.count.count();
        if !succeeded {
            self.fails.count();
        }
    }
}

impl ApiMetrics {
    /// What counts `request`.
    pub fn counters(&self, request: &Request) -> RequestCounters<'_> {
        use Request as R;
        let Self {
            get,
            put,
            patch,
            delete,
            ..
        } = self;
        let (count, fails) = match request {
            R::GetInstance => (&get.instance_info_count, &get.fails),
            R::GetVersion => (&get.vmm_version_count, &get.fails),
            R::GetMachineConfig => (&get.machine_cfg_count, &get.fails),
            R::GetMmds => (&get.mmds_count, &get.fails),
            R::GetVmConfig | R::GetBalloon | R::GetBalloonStatistics | R::GetMetrics => {
                (&get.other_count, &get.fails)
            }
            R::PutAction(_) => (&put.actions_count, &put.actions_fails),
            R::PutBootSource(_) => (&put.boot_source_count, &put.boot_source_fails),
            R::PutDrive(_) => (&put.drive_count, &put.drive_fails),
            R::PutLogger(_) => (&put.logger_count, &put.logger_fails),
            R::PutMachineConfig(_) => (&put.machine_cfg_count, &put.machine_cfg_fails),
            R::PutMetrics(_) => (&put.metrics_count, &put.metrics_fails),
            R::PutNetworkInterface(_) => (&put.network_count, &put.network_fails),
            R::PutMmds(_) | R::PutMmdsConfig(_) => (&put.mmds_count, &put.mmds_fails),
            R::PutVsock(_) => (&put.vsock_count, &put.vsock_fails),
            R::PutPmem(_) => (&put.pmem_count, &put.pmem_fails),
            R::PutSerial(_) => (&put.serial_count, &put.serial_fails),
            R::PatchDrive(_) => (&patch.drive_count, &patch.drive_fails),
            R::PatchNetworkInterface(_) => (&patch.network_count, &patch.network_fails),
            R::PatchMachineConfig(_) => (&patch.machine_cfg_count, &patch.machine_cfg_fails),
            R::PatchMmds(_) => (&patch.mmds_count, &patch.mmds_fails),
            R::PatchVm(_) | R::PatchBalloon(_) | R::PatchBalloonStatistics(_) => {
                (&patch.other_count, &patch.other_fails)
            }
            R::DeleteDrive(_) | R::DeleteNetworkInterface(_) => (&delete.count, &delete.fails),
            _ => (&put.other_count, &put.other_fails),
        };
        RequestCounters { count, fails }
    }

    pub(super) fn groups(&self) -> [(&'static str, &dyn Metrics); 6] {
        [
            ("api_server", &self.server),
            ("deprecated_api", &self.deprecated),
            ("get_api_requests", &self.get),
            ("put_api_requests", &self.put),
            ("patch_api_requests", &self.patch),
            ("delete_api_requests", &self.delete),
        ]
    }
}
