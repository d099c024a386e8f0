# GKE Standard: a system pool with one node, and pools that start at zero nodes.

locals {
  # Every pool needs its machine type in every zone.
  offers = {
    for pair in setproduct(var.zones, distinct([for pool in var.pools : pool.machine_type])) :
    "${pair[0]}/${pair[1]}" => { zone = pair[0], machine_type = pair[1] }
  }

  # The machine of each pool as Compute Engine lists it, and its GPUs, null for machines without.
  machines = {
    for name, pool in var.pools :
    name => one(data.google_compute_machine_types.pools["${var.zones[0]}/${pool.machine_type}"].machine_types)
  }
  gpus = { for name, machine in local.machines : name => one(machine.accelerators) }
}

data "google_compute_machine_types" "pools" {
  for_each = local.offers
  project  = var.project_id
  zone     = each.value.zone
  filter   = "name = \"${each.value.machine_type}\""

  # The plan stops here instead of pods that wait without end.
  lifecycle {
    postcondition {
      condition     = length(self.machine_types) == 1
      error_message = "pools: the machine type ${jsonencode(each.value.machine_type)} is not offered in ${jsonencode(each.value.zone)}. Choose other zones or another machine type: gcloud compute machine-types list --filter=\"name=${each.value.machine_type}\""
    }
  }
}

module "cluster" {
  source  = "terraform-google-modules/kubernetes-engine/google//modules/private-cluster"
  version = "44.2.0"

  project_id          = var.project_id
  name                = var.name
  region              = var.region
  zones               = var.zones
  release_channel     = var.release_channel
  deletion_protection = var.deletion_protection

  network                    = google_compute_network.this.name
  subnetwork                 = google_compute_subnetwork.nodes.name
  ip_range_pods              = "pods"
  ip_range_services          = "services"
  default_max_pods_per_node  = 32
  enable_private_nodes       = true
  enable_private_endpoint    = length(var.api_cidrs) == 0
  master_ipv4_cidr_block     = var.control_plane_cidr
  master_authorized_networks = [for cidr in var.api_cidrs : { cidr_block = cidr, display_name = "api-${replace(replace(cidr, ".", "-"), "/", "-")}" }]

  datapath_provider    = "ADVANCED_DATAPATH" # enforces network policies
  gateway_api_channel  = "CHANNEL_STANDARD"
  gcs_fuse_csi_driver  = true
  filestore_csi_driver = var.shared_volume

  create_service_account   = true # of the nodes; it may pull images and write logs, nothing else
  grant_registry_access    = false
  remove_default_node_pool = true
  cluster_resource_labels  = local.labels

  node_pools = concat(
    [{
      name            = "system"
      machine_type    = var.system_machine_type
      total_min_count = 1
      total_max_count = 3
      disk_size_gb    = 50
      disk_type       = "pd-balanced"
    }],
    [for name, pool in var.pools : merge(
      {
        name               = name
        machine_type       = pool.machine_type
        spot               = pool.spot
        initial_node_count = 0
        total_min_count    = 0
        total_max_count    = pool.max_nodes
        location_policy    = "ANY" # spot machines and GPUs are taken where they are free
        disk_size_gb       = pool.disk_gb
        disk_type          = can(regex("^(c4|n4|a4|g4)-", pool.machine_type)) ? "hyperdisk-balanced" : "pd-balanced"
      },
      local.gpus[name] == null ? {} : {
        accelerator_type   = local.gpus[name].guest_accelerator_type
        accelerator_count  = local.gpus[name].guest_accelerator_count
        gpu_driver_version = "DEFAULT"
      },
    )],
  )

  node_pools_labels = merge(
    { all = {}, system = {} },
    { for name, pool in var.pools : name => { sie-pool = name } },
  )

  node_pools_taints = merge(
    { all = [], system = [] },
    { for name, pool in var.pools : name => pool.taints },
  )
}
